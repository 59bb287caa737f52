// The Python module _emulated, for tests/cuda: importing it registers the ops varlen_rnn_emulated::*,
// the CUDA ops on the emulated machine; what it holds itself is about that machine.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda/emulator/cublas.h"
#include "cuda/launch.cuh"
#include "cuda/python_self_check.h"
#include "cuda/python_settings.h"
#include "cuda/team.h"

namespace py = pybind11;

namespace {

namespace cuda = varlen_rnn::cuda;
namespace emulator = varlen_rnn::emulator;
using varlen_rnn::simt::Device;

py::dict counters() {
  py::dict dict;
  dict["launches"] = emulator::counters().launches;
  dict["fibers"] = emulator::counters().fibers;
  dict["switches"] = emulator::counters().switches;
  return dict;
}

auto possible_teams(bool is_lstm, bool is_backward, int64_t hidden_size, int element_size,
                    int max_cluster_size, int64_t max_shared_bytes) {
  return cuda::possible_teams({is_lstm, is_backward, hidden_size, element_size},
                              {max_cluster_size, max_shared_bytes});
}

// The persistent kernels of a pass: tiles of a warp's part, those in registers, the most warps, parts
// (0: any number), and whether a block is alone.
auto variants(bool is_backward) {
  std::vector<std::tuple<int, int, int, int, bool>> all;
  for (const cuda::Variant& v : cuda::variants_of(is_backward)) {
    all.emplace_back(v.tiles, v.resident, v.max_warps, v.k_parts, v.alone);
  }
  return all;
}

}  // namespace

PYBIND11_MODULE(_emulated, m) {
  cuda::define_settings(m);
  cuda::define_self_check(m);
  // module_local: _C_cuda in the same process has types of these names.
  py::class_<Device>(m, "Device", py::module_local())
      .def_readwrite("major", &Device::major)
      .def_readwrite("minor", &Device::minor)
      .def_readwrite("multiprocessors", &Device::multiprocessors)
      .def_readwrite("max_shared_bytes", &Device::max_shared_bytes)
      .def_readwrite("max_cluster_size", &Device::max_cluster_size);
  py::class_<emulator::Settings>(m, "Machine", py::module_local())
      .def_readwrite("seed", &emulator::Settings::seed)
      .def_readwrite("device", &emulator::Settings::device)
      .def_readwrite("active_clusters", &emulator::Settings::active_clusters)
      .def_readwrite("is_capturing", &emulator::Settings::is_capturing)
      .def_property(
          "mma_error", [](const emulator::Settings&) { return emulator::mma_error(); },
          [](emulator::Settings&, float error) { emulator::mma_error() = error; })
      .def_readwrite("waits_expire", &emulator::Settings::waits_expire)
      .def_readwrite("lose_completion", &emulator::Settings::lose_completion);
  py::class_<cuda::Team>(m, "Team", py::module_local())
      .def_readonly("variant", &cuda::Team::variant)
      .def_readonly("cluster_size", &cuda::Team::cluster_size)
      .def_readonly("units", &cuda::Team::units)
      .def_readonly("row_groups", &cuda::Team::row_groups)
      .def_readonly("k_parts", &cuda::Team::k_parts)
      .def_readonly("tiles", &cuda::Team::tiles)
      .def_readonly("resident", &cuda::Team::resident)
      .def_readonly("pitch", &cuda::Team::pitch)
      .def_readonly("threads", &cuda::Team::threads)
      .def_readonly("input_pitch", &cuda::Team::input_pitch)
      .def_readonly("float_pitch", &cuda::Team::float_pitch)
      .def_readonly("turns", &cuda::Team::turns)
      .def_readonly("vectors", &cuda::Team::vectors)
      .def_readonly("sums", &cuda::Team::sums)
      .def_readonly("bias", &cuda::Team::bias)
      .def_readonly("inputs", &cuda::Team::inputs)
      .def_readonly("weights", &cuda::Team::weights)
      .def_readonly("input_bytes", &cuda::Team::input_bytes)
      .def_readonly("shared_bytes", &cuda::Team::shared_bytes);

  py::class_<emulator::Product>(m, "Product", py::module_local())
      .def_readonly("m", &emulator::Product::m)
      .def_readonly("n", &emulator::Product::n)
      .def_readonly("k", &emulator::Product::k)
      .def_readonly("count", &emulator::Product::count)
      .def_readonly("is_tf32", &emulator::Product::is_tf32)
      .def_readonly("is_reduced", &emulator::Product::is_reduced);
  py::class_<emulator::Blas>(m, "Blas", py::module_local())
      .def_readwrite("is_there", &emulator::Blas::is_there)
      .def_readwrite("status", &emulator::Blas::status)
      .def_readwrite("math_mode", &emulator::Blas::math_mode);

  m.def("blas", &emulator::blas, py::return_value_policy::reference);
  m.def("take_products", [] { return std::exchange(emulator::blas().products, {}); });
  m.def("machine", &emulator::settings, py::return_value_policy::reference);
  m.def("counters", &counters);
  m.def("possible_teams", &possible_teams, py::kw_only(), py::arg("is_lstm"),
        py::arg("is_backward"), py::arg("hidden_size"), py::arg("element_size"),
        py::arg("max_cluster_size"), py::arg("max_shared_bytes"));
  m.def("variants", &variants, py::kw_only(), py::arg("is_backward"));
}
