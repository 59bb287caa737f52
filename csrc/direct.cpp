// Calls that go from Python to the kernels directly: tensors come as the addresses of their memory,
// which Python has checked. Nothing here goes through torch's dispatcher, which takes longer than a
// small layer.
#include "direct.h"

#include <pybind11/stl.h>

#include <memory>
#include <numeric>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/stream.h"
#include "cpu/work.h"
#include "torch_stable.h"

namespace py = pybind11;

namespace varlen_rnn {
namespace {

using Address = std::uintptr_t;
using Addresses = std::vector<Address>;

template <class T>
T* pointer_to(Address address) {
  return reinterpret_cast<T*>(address);
}

// Of every layer the tensors of varlen_rnn.ops.packed.KINDS, one layer behind the other.
std::vector<Weights> weights_at(const Addresses& tensors) {
  constexpr size_t kKinds = 7;
  std::vector<Weights> layers;
  for (size_t first = 0; first + kKinds <= tensors.size(); first += kKinds) {
    const auto at = [&](size_t kind) { return pointer_to<const void>(tensors[first + kind]); };
    const auto scale = [&](size_t kind) { return static_cast<const float*>(at(kind)); };
    layers.push_back({at(0), at(1), at(2), at(3), at(6), scale(4), scale(5)});
  }
  return layers;
}

// `dtype` and `order` are numbers of the enumerations in params.h.
LayerSizes sizes_of(bool is_lstm, int dtype, int order, int64_t units, int64_t input_size,
                    int64_t hidden_size, int64_t output_size) {
  return {is_lstm,
          static_cast<Dtype>(dtype),
          static_cast<WeightOrder>(order),
          units,
          input_size,
          hidden_size,
          output_size,
          false};
}

// Calls f with the threads that a call is worth.
template <class F>
void with_pool(double flops, int64_t rows, const F& f) {
  // One worker's work needs no threads, and other threads of Python can wait for it.
  if (rows == 0 || num_workers(flops, static_cast<double>(rows), 2) == 1) {
    return f({1, false, serial_for});
  }
  const py::gil_scoped_release others_may_run;
  f({static_cast<int64_t>(torch::stable::get_num_threads()), workers_may_wait(), parallel_for});
}

std::unique_ptr<Stream> make_stream(bool is_lstm, int dtype, int order, int64_t units,
                                    int64_t input_size, int64_t hidden_size, int64_t output_size,
                                    const Addresses& weights, int64_t num_rows) {
  LayerSizes sizes = sizes_of(is_lstm, dtype, order, units, input_size, hidden_size, output_size);
  sizes.float_cells = sizes.element() == 2;
  return std::make_unique<Stream>(sizes, weights_at(weights), num_rows);
}

void run_stream(Stream& stream, int64_t count, Address rows, Address x, int64_t num_steps,
                Address out) {
  with_pool(stream.flops(count * num_steps), count, [&](const Pool& pool) {
    stream.run({pointer_to<const int64_t>(rows), count}, pointer_to<const void>(x), num_steps,
               pointer_to<void>(out), pool);
  });
}

// A full batch: x [num_steps, count, I], or [count, num_steps, I] if not `by_step`.
void run_layers(bool is_lstm, int dtype, int order, int64_t units, int64_t input_size,
                int64_t hidden_size, int64_t output_size, const Addresses& weights, int64_t count,
                int64_t num_steps, bool by_step, Address x, Address out, Address h_0, Address c_0,
                Address h_n, Address c_n) {
  const LayerSizes sizes =
      sizes_of(is_lstm, dtype, order, units, input_size, hidden_size, output_size);
  const std::vector<Weights> layers = weights_at(weights);
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), 0);
  static thread_local bool backwards = false;
  backwards = !backwards;  // from call to call, as in a stream from step to step
  const Rows rows = {pointer_to<const void>(x),
                     pointer_to<void>(out),
                     count,
                     num_steps,
                     by_step,
                     numbers.data(),
                     count,
                     pointer_to<const void>(h_0),
                     pointer_to<const void>(c_0),
                     pointer_to<void>(h_n),
                     pointer_to<void>(c_n),
                     backwards};
  LayerRunner runner(false);
  with_pool(sizes.flops(layers.size(), count * num_steps), count,
            [&](const Pool& pool) { runner.run(sizes, layers.data(), layers.size(), rows, pool); });
}

}  // namespace

void define_direct_calls(py::module_& m) {
  m.def("run_layers", &run_layers);
  py::class_<Stream>(m, "Stream")
      .def(py::init(&make_stream))
      .def("step",
           [](Stream& s, Address x, Address out) { run_stream(s, s.num_rows(), 0, x, 1, out); })
      .def("run", &run_stream)
      .def("read",
           [](Stream& s, int64_t count, Address rows, Address h, Address c) {
             s.read({pointer_to<const int64_t>(rows), count}, pointer_to<void>(h),
                    pointer_to<void>(c));
           })
      .def("revive", &Stream::revive)
      .def("load",
           [](Stream& s, int64_t count, Address rows, Address h, Address c) {
             s.load({pointer_to<const int64_t>(rows), count}, pointer_to<const void>(h),
                    pointer_to<const void>(c));
           })
      .def("retire", [](Stream& s, Address h,
                        Address c) { s.retire(pointer_to<void>(h), pointer_to<void>(c)); })
      .def("reset", [](Stream& s, int64_t count, Address rows) {
        s.reset({pointer_to<const int64_t>(rows), count});
      });
}

}  // namespace varlen_rnn
