"""TRL's own `GRPOTrainer`, one step at a time, with clocks at the callbacks its `train` method offers.

Nothing of the trainer is rewritten. `train()` runs one step (`max_steps`): between `on_step_begin` and `on_step_end` lie
transformers' `generate`, the reward, the reference's pass, the loss and the optimiser; data loader and set-up are not
counted. Responses have their full length on both sides, here by `min_new_tokens`.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from benchmark.grpo_step import CONFIG, check_groups
from benchmark.networks import MAX_GRAD_NORM, Networks, grammar
from benchmark.one_step import Clock
from benchmark.trl_dpo import Seams, number_words, saved_network, text_of
from benchmark.workload import Form, Workload
from rlhf_jax.learners.optimizer import ADAM


class TrlStep:
    """`GRPOTrainer` on the same networks, prompts and numbers."""

    form: Form = "shared"

    def __init__(
        self,
        workload: Workload,
        networks: Networks,
        *,
        learning_rate: float,
        bf16: bool = False,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Builds the trainer; gradient checkpointing is off, which is faster.

        Raises: ValueError where the responses are no whole groups.
        """
        check_groups(workload)
        self.name = "trl_bf16" if bf16 else "trl"
        self.first_call: dict[str, float] = {}
        self.folder = tempfile.TemporaryDirectory()
        self.seams = Seams(clock)
        self.response = workload.response
        self.rewards: list[float] = []
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"
        # Accelerate's state is global, and an earlier trainer of another type would decide for this one.
        accelerate.state.AcceleratorState._reset_state()
        datasets.disable_progress_bars()
        rules, size = grammar(workload), CONFIG.group_size
        args = GRPOConfig(
            output_dir=str(Path(self.folder.name) / "out"),
            per_device_train_batch_size=workload.batch // workload.microbatches,
            gradient_accumulation_steps=workload.microbatches,
            num_generations=size,
            num_iterations=CONFIG.epochs,
            max_completion_length=workload.response,
            generation_kwargs={"min_new_tokens": workload.response},
            temperature=1.0,
            max_steps=1,
            beta=CONFIG.kl_coef,
            # k3 as it is: TRL's default weighs it by the ratio, whose gradient is not 0 even where it is 1.
            use_bias_correction_kl=False,
            epsilon=CONFIG.clip_eps,
            # The mean over all tokens, and each group's own deviation: as ours.
            loss_type="dapo",
            scale_rewards="group",
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            adam_epsilon=ADAM.eps,
            max_grad_norm=MAX_GRAD_NORM,
            bf16=bf16,
            # Ours has none while it learns.
            disable_dropout=True,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )
        model = saved_network(self.folder, workload, networks.policy, "policy")
        saved_network(self.folder, workload, networks.critic, "reference")
        # The trainer reads its reference from where it believes the policy came from.
        model.config._name_or_path = str(Path(self.folder.name) / "reference")
        prompts = np.asarray(networks.prompts)[: workload.batch // size]
        self.trainer = GRPOTrainer(
            model=model,
            reward_funcs=self._even_share,
            args=args,
            processing_class=number_words(workload, rules.pad, rules.eos),
            train_dataset=datasets.Dataset.from_dict({"prompt": [text_of(row) for row in prompts]}),
            callbacks=[self.seams],
        )
        self.trainer.remove_callback(transformers.PrinterCallback)

    def _even_share(self, completion_ids: list[list[int]], **others: Any) -> list[float]:
        """`grpo_step.even_share`; refuses responses that are not of full length."""
        del others
        lengths = {len(tokens) for tokens in completion_ids}
        if lengths != {self.response}:
            raise ValueError(f"TRL drew responses of {sorted(lengths)} tokens, not {self.response}")
        self.rewards = [sum(token % 2 == 0 for token in tokens) / len(tokens) for tokens in completion_ids]
        return self.rewards

    def warm_up(self) -> None:
        """First call, and one more, as ours."""
        self.first_call = self.iterate()
        self.iterate()

    def iterate(self) -> dict[str, float]:
        """One `train()`."""
        self.trainer.train()
        return {"whole": self.seams.end - self.seams.begin}

    def reference_logprobs(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the trainer's reference says of responses, as the trainer asks it. [B, T]

        Args:
          tokens: prompts and responses. [B, P + T]
        """
        with torch.no_grad():
            said, _, _ = self.trainer._get_per_token_logps_and_entropies(
                self.trainer.ref_model, tokens, torch.ones_like(tokens), self.response
            )
        return said

    def loss_and_gradients(
        self, tokens: torch.Tensor, advantages: torch.Tensor, old_logprobs: torch.Tensor
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """The trainer's own loss on given responses of full length, and the gradient of every parameter; nothing moves.

        Args:
          tokens: prompts and responses. [B, P + T]
          advantages: of every token. [B, T]
          old_logprobs: what stands below the ratio. [B, T]
        """
        trainer, ones = self.trainer, torch.ones_like(tokens)
        inputs = {
            "prompt_ids": tokens[:, : -self.response],
            "prompt_mask": ones[:, : -self.response],
            "completion_ids": tokens[:, -self.response :],
            "completion_mask": ones[:, -self.response :],
            "num_items_in_batch": ones[:, -self.response :].sum(),
            "advantages": advantages,
            "old_per_token_logps": old_logprobs,
            "ref_per_token_logps": self.reference_logprobs(tokens),
        }
        trainer.model.train()
        trainer.model.zero_grad()
        # `train` sets it before each step.
        trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        found = {
            name: parameter.grad.clone()
            for name, parameter in trainer.model.named_parameters()
            if parameter.grad is not None
        }
        trainer.model.zero_grad()
        trainer._metrics["train"].clear()
        return loss.item(), found
