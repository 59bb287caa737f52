// The Python module _C: importing it registers the ops; what it holds itself is about the build.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/dispatch.h"
#include "direct.h"

namespace py = pybind11;

namespace {

using varlen_rnn::kMaxInstructionSets;

py::list names_of(int (*instruction_sets)(const char**)) {
  const char* names[kMaxInstructionSets];
  const int count = instruction_sets(names);
  py::list list;
  for (int i = 0; i < count; ++i) list.append(names[i]);
  return list;
}

py::list available_cpu_isas() { return names_of(varlen_rnn::available_instruction_sets); }

void set_cpu_isa(const std::string& name) {
  if (!varlen_rnn::use_instruction_set(name.c_str())) {
    const std::string available = py::cast<std::string>(py::str(available_cpu_isas()));
    throw py::value_error("varlen_rnn: the CPU instruction set must be one of " + available +
                          ", got '" + name + "'");
  }
}

py::dict build_info() {
  py::dict info;
  info["cpu_isas"] = available_cpu_isas();
  info["cpu_isa"] = varlen_rnn::kernels().name;
  info["torch_target_version"] = VARLEN_RNN_TORCH_TARGET;
  info["compiler"] = VARLEN_RNN_COMPILER;
  return info;
}

}  // namespace

// Whatever calls and settings share is atomic.
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.def("build_info", &build_info);
  m.def("available_cpu_isas", &available_cpu_isas);
  m.def("float_cpu_isas", [] { return names_of(varlen_rnn::instruction_sets_for_floats); });
  m.def("vector_bytes", [] { return varlen_rnn::kernels().vector_bytes; });
  m.def("cpu_isa", [] { return varlen_rnn::kernels().name; });
  m.def("set_workers_may_wait", &varlen_rnn::set_workers_may_wait, py::arg("value"));
  m.def("set_cpu_isa", &set_cpu_isa, py::arg("name"));
  varlen_rnn::define_direct_calls(m);
}
