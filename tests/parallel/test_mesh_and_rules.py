"""What the mesh refuses, where the rules put things, what a batch asks for; no second device is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from small_learners import LEARNERS, agent

from rlhf_jax.learners.optimizer import make_optimizer
from rlhf_jax.learners.ppo_config import PPOConfig
from rlhf_jax.models import gpt2
from rlhf_jax.parallel import processes, rules
from rlhf_jax.parallel.mesh import AXES, MeshConfig, check_sizes, make_mesh
from rlhf_jax.parallel.partition import ONE_DEVICE, Partition
from rlhf_jax.parallel.processes import ProcessConfig
from rlhf_jax.stages.alignment import AlignmentConfig
from rlhf_jax.stages.launch import lay_out
from rlhf_jax.stages.reward import RewardConfig
from rlhf_jax.stages.supervised import SupervisedConfig
from scale.collectives import Collective, collectives, table

MEDIUM = gpt2.GPT2Config(vocab_size=57_344, n_embd=1024, n_layer=24, n_head=16)


@pytest.fixture(scope="module")
def one() -> Partition:
    return Partition(make_mesh(MeshConfig()))


def test_too_few_devices_are_counted() -> None:
    with pytest.raises(ValueError, match=r"mesh data 3 × fsdp 2 × tensor 1 needs 6 devices, there are 1"):
        make_mesh(MeshConfig(3, 2, 1), jax.devices()[:1])
    with pytest.raises(ValueError, match=r"MeshConfig.fsdp must be in \[1, 65536\]: got 0"):
        MeshConfig(fsdp=0)


def test_sizes_that_do_not_divide_are_all_named() -> None:
    check_sizes(MeshConfig(2, 2, 2), width=32, heads=4, vocabulary=64, rows={"rows": 8})
    with pytest.raises(
        ValueError, match="heads 6 by tensor = 4; vocabulary rows 60 by fsdp × tensor = 8; rows 9 by da"
    ):
        check_sizes(MeshConfig(2, 2, 4), width=32, heads=6, vocabulary=60, rows={"rows": 9})


def test_the_stages_batches_are_checked_before_any_work() -> None:
    configs = (
        SupervisedConfig(max_tokens=128, buckets=(64, 128)),
        RewardConfig(batch_size=30),
        AlignmentConfig(batch_size=64),
        PPOConfig(minibatches=32),
    )
    assert lay_out(MeshConfig(), agent().network, *configs) is ONE_DEVICE
    with pytest.raises(ValueError) as error:
        lay_out(MeshConfig(data=4), agent().network, *configs)
    assert "reward model rows (--reward.batch-size) 30 by data × fsdp = 4" in str(error.value)
    assert "(--align.batch-size // --ppo.minibatches // --ppo.microbatches) 2 by data × fsdp = 4" in str(error.value)
    assert "--sft.tokens-per-batch" not in str(error.value)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_array_of_every_learner_has_a_rule(one: Partition, name: str) -> None:
    state = LEARNERS[name](ONE_DEVICE).state
    placed = one.stored(state)
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    # A parameter, its two moments and its average lie alike.
    specs = dict(zip(rules.paths(state), (at.spec for at in jax.tree.leaves(placed)), strict=True))
    for path, spec in specs.items():
        if path.startswith("params/"):
            alike = [other for other in specs if other.endswith(path.removeprefix("params/"))]
            assert len(alike) >= 3 and {specs[other] for other in alike} == {spec}, path


def test_an_unknown_array_is_refused(one: Partition) -> None:
    with pytest.raises(ValueError, match="no sharding rule for 'params/trunk/adapter'"):
        one.stored({"params": {"trunk": {"adapter": jnp.zeros(3)}}})


def test_an_array_that_cannot_be_cut_is_named_with_its_numbers() -> None:
    mesh = AbstractMesh((1, 3, 1), AXES)
    with pytest.raises(ValueError, match=r"wte of shape \(64, 8\): 64 is not a multiple of tensor × fsdp = 3"):
        rules.shardings(mesh, {"wte": jax.ShapeDtypeStruct((64, 8), jnp.float32)})


def test_bytes_of_parameters_and_moments_fall_as_one_over_fsdp() -> None:
    key = jax.eval_shape(jax.random.key, 0)
    params = jax.eval_shape(lambda key: gpt2.init(MEDIUM, key), key)
    optimizer = make_optimizer(learning_rate=1e-3, total_steps=10)
    state = (params, jax.eval_shape(optimizer.init, params))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))

    def held(data: int, fsdp: int, tensor: int) -> float:
        mesh = AbstractMesh((data, fsdp, tensor), AXES)
        return rules.bytes_per_device(state, rules.shardings(mesh, state)) / whole

    assert held(1, 1, 1) == held(8, 1, 1) == 1.0
    # Vectors stay whole; they are a thousandth.
    for fsdp in (2, 4, 8, 32):
        assert 1 <= held(4, fsdp, 1) * fsdp < 1.001 + 0.001 * fsdp
    # `tensor` leaves the positions whole.
    assert held(1, 2, 4) == pytest.approx(1 / 8, rel=0.02)


def test_the_cache_is_cut_by_rows_and_heads() -> None:
    config = agent().network
    cache = jax.eval_shape(lambda: gpt2.init_cache(config, 16, 8))
    mesh = AbstractMesh((2, 2, 2), AXES)
    placed = rules.shardings(mesh, cache, rules.CACHE)
    assert placed.layers[0][0].shard_shape((16, 8, 8, 4)) == (4, 4, 8, 4)
    assert placed.mask.spec == P(("data", "fsdp")) and placed.index.spec == P()


def test_one_device_changes_nothing() -> None:
    tree = {"w": jnp.ones(3)}
    assert ONE_DEVICE.place(tree) is tree and ONE_DEVICE.fetch(tree) is tree and ONE_DEVICE.by_row(len) is len
    np.testing.assert_array_equal(ONE_DEVICE.batch(4, lambda own: np.arange(10)[own]), np.arange(4))


def test_a_mesh_of_one_keeps_numbers_and_copies(one: Partition) -> None:
    tree = {"wte": jnp.ones((8, 2)), "key": jax.random.key(3)}
    placed = one.place(tree)
    jax.tree.map(lambda leaf: leaf.delete(), placed["wte"])
    assert tree["wte"].sum() == 16
    assert one.fetch(placed["key"]) == tree["key"]
    with pytest.raises(ValueError, match="a batch of 3 rows cannot be cut into data × fsdp = 2 parts"):
        Partition(AbstractMesh((2, 1, 1), AXES)).batch(3, lambda own: own)


def test_processes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="ProcessConfig.index 2: there are ProcessConfig.count 2"):
        ProcessConfig("localhost:1", 2, 2)
    with pytest.raises(ValueError, match="ProcessConfig.count 2 needs ProcessConfig.coordinator HOST:PORT"):
        ProcessConfig(count=2)


def test_alone_every_agreement_is_ones_own() -> None:
    assert processes.leads() and not processes.several()
    assert processes.any_of(True) and not processes.any_of(False)
    assert processes.from_lead({"a": 0.1 + 0.2}) == {"a": 0.1 + 0.2}

    def fail() -> None:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        processes.lead_does(fail)


PROGRAM = """
  %all-reduce.1 = (f32[4,8]{1,0}, /*index=1*/bf16[2]{0}) all-reduce(%a, %b), replica_groups={{0,2},{1,3},{4,6},{5,7}}, x
  ROOT %all-gather.2 = f32[16]{0} all-gather(%c), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %all-to-all.3 = (f32[3]{0}, f32[3]{0}) all-to-all(%d, %e), replica_groups=[4,2]<=[8], dimensions={0}
  %ar.4 = f32[] all-reduce-start(%f), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, use_global_device_ids=true
  %ar.5 = f32[] all-reduce(%f), replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([2,2,2]T(1,0,2)) {'b'}, to_apply=%x
  %done.6 = f32[] all-reduce-done(%ar.4)
  %permute.7 = s32[2]{0} collective-permute(%g), source_target_pairs={{0,1},{1,0}}
"""


def test_collectives_are_read_with_their_axes() -> None:
    cube = dict.fromkeys(AXES, 2)
    found = collectives(PROGRAM, cube)
    assert found == [
        Collective("all-reduce", ("fsdp",), (4, 8), 128),
        Collective("all-reduce", ("fsdp",), (2,), 4),
        Collective("all-gather", ("data", "fsdp"), (16,), 64),
        Collective("all-to-all", ("tensor",), (3,), 24),
        Collective("all-reduce", ("data", "fsdp"), (), 4),
        Collective("all-reduce", ("fsdp",), (), 4),
        Collective("collective-permute", ("tensor",), (2,), 8),
    ]
    assert table(found, least=60) == {("all-gather", ("data", "fsdp")): (1, 64), ("all-reduce", ("fsdp",)): (1, 128)}
    with pytest.raises(ValueError, match="groups of this collective cannot be read"):
        collectives("%x = f32[] all-reduce(%f), replica_groups=new_style", cube)


def test_a_mesh_is_a_jax_mesh() -> None:
    mesh = make_mesh(MeshConfig())
    assert isinstance(mesh, Mesh) and mesh.axis_names == AXES and dict(mesh.shape) == {axis: 1 for axis in AXES}
