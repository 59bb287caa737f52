"""The compiled extension (csrc/module.cpp); importing it registers `torch.ops.varlen_rnn`."""

def build_info() -> dict[str, object]: ...
def cpu_isa() -> str: ...
def available_cpu_isas() -> list[str]: ...
def float_cpu_isas() -> list[str]: ...
def set_cpu_isa(name: str) -> None: ...
def set_workers_may_wait(value: bool) -> None: ...
def vector_bytes() -> int: ...

# Below all tensors are the addresses of their memory; 0 is none.

def run_layers(
    is_lstm: bool,
    dtype: int,
    order: int,
    units: int,
    input_size: int,
    hidden_size: int,
    output_size: int,
    weights: list[int],
    count: int,
    num_steps: int,
    by_step: bool,
    x: int,
    out: int,
    h_0: int,
    c_0: int,
    h_n: int,
    c_n: int,
) -> None: ...

class Stream:
    def __init__(
        self,
        is_lstm: bool,
        dtype: int,
        order: int,
        units: int,
        input_size: int,
        hidden_size: int,
        output_size: int,
        weights: list[int],
        num_rows: int,
    ) -> None: ...
    def step(self, x: int, out: int) -> None: ...
    def run(self, count: int, rows: int, x: int, num_steps: int, out: int) -> None: ...
    def read(self, count: int, rows: int, h: int, c: int) -> None: ...
    def retire(self, h: int, c: int) -> None: ...
    def load(self, count: int, rows: int, h: int, c: int) -> None: ...
    def reset(self, count: int, rows: int) -> None: ...
