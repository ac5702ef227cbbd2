"""TRL's own `DPOTrainer`, one optimiser step at a time, with clocks at the callbacks its `train` method offers.

Nothing of the trainer is rewritten. `train()` runs one step (`max_steps`); `on_step_begin` comes after the batch was
fetched, `on_step_end` after the optimiser: data loader, logging and set-up are not counted. The reference is read before
learning (`precompute_ref_log_probs`); as shipped it would be read again in every step.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import accelerate
import datasets
import tokenizers
import torch
import transformers
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from benchmark import torch_loop
from benchmark.dpo_step import CONFIG, draw_pairs
from benchmark.networks import Networks, grammar, network_config
from benchmark.one_step import Clock
from benchmark.workload import Form, Workload
from rlhf_jax.interfaces import Params
from rlhf_jax.models import convert


class Seams(transformers.TrainerCallback):
    """When the step began and ended."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.begin, self.end = clock, 0.0, 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """The batch is there."""
        torch_loop.synchronise()
        self.begin = self.clock()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The parameters have moved."""
        torch_loop.synchronise()
        self.end = self.clock()


class TrlStep:
    """`DPOTrainer` on the same networks, pairs and numbers."""

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
        """Builds the trainer; gradient checkpointing is off, which is faster."""
        self.name = "trl_bf16" if bf16 else "trl"
        self.first_call: dict[str, float] = {}
        self.folder = tempfile.TemporaryDirectory()
        self.seams = Seams(clock)
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if bf16 else "no"
        # Accelerate's state is global, and an earlier trainer of another type would decide for this one.
        accelerate.state.AcceleratorState._reset_state()
        datasets.disable_progress_bars()
        rules, pairs = grammar(workload), draw_pairs(workload, networks)
        args = DPOConfig(
            output_dir=str(Path(self.folder.name) / "out"),
            per_device_train_batch_size=len(pairs.prompts) // workload.microbatches,
            gradient_accumulation_steps=workload.microbatches,
            max_steps=1,
            beta=CONFIG.beta,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=CONFIG.weight_decay,
            adam_epsilon=CONFIG.adam_eps,
            max_grad_norm=CONFIG.max_grad_norm,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=len(pairs.prompts),
            bf16=bf16,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
        )

        self.trainer = DPOTrainer(
            model=saved_network(self.folder, workload, networks.policy, "policy"),
            ref_model=saved_network(self.folder, workload, networks.critic, "reference"),
            args=args,
            processing_class=number_words(workload, rules.pad, rules.eos),
            train_dataset=datasets.Dataset.from_dict(
                {
                    "prompt": [text_of(row) for row in pairs.prompts],
                    "chosen": [text_of(row[0]) for row in pairs.responses],
                    "rejected": [text_of(row[1]) for row in pairs.responses],
                }
            ),
            callbacks=[self.seams],
        )
        self.trainer.remove_callback(transformers.PrinterCallback)

    def warm_up(self) -> None:
        """First call, and one more, as ours."""
        self.first_call = self.iterate()
        self.iterate()

    def iterate(self) -> dict[str, float]:
        """One `train()`."""
        self.trainer.train()
        return {"whole": self.seams.end - self.seams.begin}

    def loss_and_gradients(self) -> tuple[float, dict[str, torch.Tensor]]:
        """The trainer's own loss on its whole batch, and the gradient of every parameter; nothing moves."""
        trainer = self.trainer
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        trainer.model.train()
        trainer.model.zero_grad()
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


def saved_network(folder: tempfile.TemporaryDirectory[str], workload: Workload, tree: Params, name: str) -> Any:
    """Our numbers as Hugging Face's GPT-2, by way of a folder `name` in `folder`."""
    path, rules = Path(folder.name) / name, grammar(workload)
    convert.save_hf(path, network_config(workload), tree, eos_token_id=rules.eos, pad_token_id=rules.pad)
    return transformers.GPT2LMHeadModel.from_pretrained(path)


def text_of(tokens: Any) -> str:
    """Tokens as the text that `number_words` reads."""
    return "".join(f" w{token}" for token in tokens)


def number_words(workload: Workload, pad: int, eos: int) -> transformers.PreTrainedTokenizerFast:
    """Numbers as words: TRL takes texts and reads them itself."""
    words = {f"w{i}": i for i in range(workload.vocab_size)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, pad_token=f"w{pad}", eos_token=f"w{eos}")
