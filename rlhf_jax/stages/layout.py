"""From the mesh's flags to the layout the stages train on; what does not fit is said before any work is done."""

from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.models.gpt2 import GPT2Config
from rlhf_jax.parallel.mesh import MeshConfig, check_sizes, make_mesh
from rlhf_jax.parallel.partition import ONE_DEVICE, Layout, Partition
from rlhf_jax.parallel.processes import several
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.reward import RewardConfig
from rlhf_jax.stages.supervised import SupervisedConfig


def lay_out(
    mesh: MeshConfig,
    network: GPT2Config,
    sft: SupervisedConfig,
    reward: RewardConfig,
    align: AlignmentConfig,
    ppo: PPOConfig,
) -> Layout:
    """The devices that train; a mesh of one leaves everything on one device.

    Raises: ValueError naming the numbers, where there are too few devices or something cannot be cut evenly.
    """
    if mesh.size == 1 and not several():
        return ONE_DEVICE
    rows = {
        f"sft rows (--sft.tokens-per-batch {sft.tokens_per_batch} // bucket {bucket})": max(
            2, sft.tokens_per_batch // bucket
        )
        for bucket in sft.buckets
    }
    rows["reward model rows (--reward.batch-size)"] = reward.batch_size
    rows["responses (--align.batch-size)"] = align.batch_size
    if align.batch_size % (ppo.minibatches * ppo.microbatches) == 0:
        named = "responses of a microbatch (--align.batch-size // --ppo.minibatches // --ppo.microbatches)"
        rows[named] = align.batch_size // ppo.minibatches // ppo.microbatches
    check_sizes(mesh, width=network.n_embd, heads=network.n_head, vocabulary=network.vocab_size, rows=rows)
    return Partition(make_mesh(mesh))
