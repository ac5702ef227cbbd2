"""TRL's own PPO trainer, run one iteration at a time, with clocks at the seams of its `train` method.

TRL 1.12 is the last release with `PPOTrainer`. Nothing of the trainer is rewritten: `train()` runs its usual single
iteration (`total_episodes` = batch), and three functions it calls note the time: `batch_generation` begins and ends the
rollout, the first `accelerator.accumulate` begins the update, the first `accelerator.gather_for_metrics` ends it. What
comes after (logging, garbage collection) and before (the data loader) is not counted.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# TRL warns that its experimental part may change, which is why its version is pinned.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import accelerate
import datasets
import tokenizers
import torch
import transformers
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmark import torch_loop
from benchmark.networks import LEARNING_RATE, Networks, grammar, network_config
from benchmark.workload import Form, Workload
from rlhf_jax.interfaces import Params
from rlhf_jax.models import convert


class TrlTrainer:
    """`PPOTrainer` on four GPT-2 networks with our numbers."""

    form: Form = "separate"

    def __init__(self, workload: Workload, networks: Networks, *, bf16: bool = False) -> None:
        """Builds the trainer; gradient checkpointing is off, which is faster."""
        self.name = "trl_bf16" if bf16 else "trl"
        self.first_call: dict[str, float] = {}
        self.times: dict[str, float] = {}
        self.folder = tempfile.TemporaryDirectory()
        rules = grammar(workload)
        slices = workload.minibatches * workload.microbatches
        # Read by accelerate: on a CPU `bf16=True` alone changes nothing.
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"
        # Accelerate's state is global, and an earlier trainer of another type would decide for this one; what that one
        # needs of it (the wrapped forward) it has already taken.
        accelerate.state.AcceleratorState._reset_state()
        args = PPOConfig(
            output_dir=str(Path(self.folder.name) / "out"),
            per_device_train_batch_size=workload.batch // slices,
            gradient_accumulation_steps=slices,
            num_mini_batches=workload.minibatches,
            num_ppo_epochs=workload.epochs,
            total_episodes=workload.batch,
            local_rollout_forward_batch_size=workload.batch,
            response_length=workload.response,
            temperature=1.0,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            num_sample_generations=0,
            bf16=bf16,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        prompts = networks.prompts.tolist()
        self.trainer = PPOTrainer(
            args=args,
            processing_class=_tokenizer(workload, rules.pad, rules.eos),
            model=self._network(workload, networks.policy, "policy"),
            ref_model=self._network(workload, networks.policy, "reference"),
            reward_model=self._network(workload, networks.reward, "reward", networks.reward_heads),
            value_model=self._network(workload, networks.critic, "critic", {"kernel": None}),
            train_dataset=datasets.Dataset.from_dict({"input_ids": prompts}),
            # The constructor wants one to build a data loader from; it is never read.
            eval_dataset=datasets.Dataset.from_dict({"input_ids": prompts}),
        )
        # One optimiser step per minibatch; as configured above accelerate would take one per epoch.
        self.trainer.accelerator.gradient_accumulation_steps = workload.microbatches
        self.trainer.accelerator.gradient_state.plugin_kwargs["sync_with_dataloader"] = False
        # It prints before every iteration and its metrics after it.
        self.trainer.remove_callback(transformers.PrinterCallback)
        self.trainer.accelerator.print = lambda *args, **kwargs: None
        self._attach_clocks(workload)

    def _network(self, workload: Workload, tree: Params, name: str, head: Any = None) -> Any:
        folder = Path(self.folder.name) / name
        rules = grammar(workload)
        config = network_config(workload)
        convert.save_hf(folder, config, tree, eos_token_id=rules.eos, pad_token_id=rules.pad)
        if head is None:
            return transformers.GPT2LMHeadModel.from_pretrained(folder)
        model = transformers.GPT2ForSequenceClassification.from_pretrained(folder, num_labels=1)
        with torch.no_grad():
            if head["kernel"] is None:
                model.score.weight.zero_()
            else:
                model.score.weight.copy_(torch.tensor(head["kernel"].T.tolist()))
        return model

    def _attach_clocks(self, workload: Workload) -> None:
        accelerator = self.trainer.accelerator
        generate, accumulate, gather = (
            ppo_trainer.batch_generation,
            accelerator.accumulate,
            accelerator.gather_for_metrics,
        )

        def note(event: str) -> None:
            torch_loop.synchronise()
            self.times.setdefault(event, time.perf_counter())

        def batch_generation(*args: Any, **kwargs: Any) -> Any:
            note("start")
            result = generate(*args, **kwargs)
            note("sampled")
            if result[0].shape[1] != workload.length:
                raise ValueError(f"TRL sampled {result[0].shape[1]} tokens in all, not {workload.length}")
            return result

        def first_accumulate(*args: Any, **kwargs: Any) -> Any:
            if "scored" not in self.times:
                note("scored")
            return accumulate(*args, **kwargs)

        def first_gather(*args: Any, **kwargs: Any) -> Any:
            if "learnt" not in self.times:
                note("learnt")
            return gather(*args, **kwargs)

        self.batch_generation = batch_generation
        accelerator.accumulate, accelerator.gather_for_metrics = first_accumulate, first_gather

    def warm_up(self) -> None:
        """First call."""
        self.first_call = self.iterate()

    def iterate(self) -> dict[str, float]:
        """One `train()`."""
        self.times.clear()
        original = ppo_trainer.batch_generation
        ppo_trainer.batch_generation = self.batch_generation
        try:
            self.trainer.train()
        finally:
            ppo_trainer.batch_generation = original
        start, sampled, scored, learnt = (self.times[event] for event in ("start", "sampled", "scored", "learnt"))
        return {
            "rollout": sampled - start,
            "scoring": scored - sampled,
            "update": learnt - scored,
            "whole": learnt - start,
        }


def _tokenizer(workload: Workload, pad: int, eos: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer in name: prompts come as numbers."""
    words = {f"w{i}": i for i in range(workload.vocab_size)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), pad_token=f"w{pad}", eos_token=f"w{eos}", padding_side="left"
    )
