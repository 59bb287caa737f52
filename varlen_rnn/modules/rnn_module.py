"""What torch's modules are beside their call: weights by name, ``state_dict``, leaves of graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from varlen_rnn.layout import hints
from varlen_rnn.modules import onnx


class RNNModule(nn.RNNBase):
    """Both cells. Weights are read by name at every call, never through a flat buffer."""

    _frozen_weights: torch.dtype | None = None  # the type of weights that are packed

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._become_ours()

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, value: object) -> None:
        """Nothing is stored, so nothing can go stale."""

    def __setattr__(self, name: str, value: Any) -> None:
        nn.Module.__setattr__(self, name, value)

    def _init_flat_weights(self) -> None:
        """Nothing to do: there is no flat buffer."""

    def _update_flat_weights(self) -> None:
        """Nothing to do: there is no flat buffer."""

    def __setstate__(self, d: Any) -> None:
        super().__setstate__(d)  # type: ignore[no-untyped-call]
        self._become_ours()  # what nn.LSTM has saved, too

    def _become_ours(self) -> None:
        """Makes an object's attributes those of these classes, if torch's classes have set them."""
        vars(self).pop("_flat_weights", None)
        # Torch's references to its flat buffer, which would keep weights from being swapped.
        self._flat_weight_refs = []
        # The tracers of torch.fx take a module for a leaf if it says so; the class tells the truth.
        vars(self)["__module__"] = "torch.nn"

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Loads nothing where weights of another kind come, and lists nothing but that."""
        weight: Any = state_dict.get(f"{prefix}weight_ih_l0")
        of_weight = None if weight is None or weight.dim() == 2 else weight.dtype
        if weight is not None and of_weight != self._frozen_weights:
            name = f"{type(self).__name__}: {prefix}weight_ih_l0"
            error_msgs.append(name + hints.other_weights(self._frozen_weights, weight))
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _slow_forward(self, *args: Any, **keywords: Any) -> Any:
        """What torch calls in place of ``forward`` while a call is traced."""
        onnx.refuse_old_exporter(self)
        return super()._slow_forward(*args, **keywords)  # type: ignore[no-untyped-call]

    def flatten_parameters(self) -> None:
        """Does nothing; kept because code written for ``torch.nn.LSTM`` calls it."""
