// The self-check's way to Python, for both modules. The package sets the checker
// (varlen_rnn/ops/self_check.py).
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <optional>
#include <string>
#include <thread>

#include "cuda/self_check.h"

namespace varlen_rnn::cuda {

// None, or the checker; read and written with the GIL. Never freed: at exit there may be no Python.
inline pybind11::object& python_checker() {
  static pybind11::object& checker = *new pybind11::object(pybind11::none());
  return checker;
}

inline std::string ask_python(const Configuration& c) {
  const char* dtype = c.dtype == Dtype::kFloat32    ? "float32"
                      : c.dtype == Dtype::kBFloat16 ? "bfloat16"
                                                    : "float16";
  const pybind11::gil_scoped_acquire gil;
  try {
    const pybind11::object checker = python_checker();
    return checker(c.device, c.is_lstm ? "lstm" : "gru", dtype, c.hidden_size, c.is_backward)
        .cast<std::string>();
  } catch (const std::exception& error) {
    return error.what();
  }
}

// In a new thread, where nothing of the caller's holds: autocast, a dispatch mode, inference mode, a
// transform, a profiler, torch.compile's view of Python.
inline std::optional<std::string> ask_python_in_thread(const Configuration& c) {
  if (!Py_IsInitialized()) return {};
  std::optional<pybind11::gil_scoped_release> others_run;
  if (PyGILState_Check()) others_run.emplace();
  std::optional<std::string> fault;  // empty if Python ends meanwhile, and the thread with it
  try {
    std::thread([&] { fault = ask_python(c); }).join();
  } catch (const std::system_error&) {  // there can be no more threads
  }
  return fault;
}

inline void warn_in_python(const std::string& text) {
  const pybind11::gil_scoped_acquire gil;
  if (PyErr_WarnEx(PyExc_RuntimeWarning, text.c_str(), 1) == 0) return;
  PyErr_Clear();  // warnings are errors here, and torch makes this one again
  throw std::runtime_error(text);
}

inline void define_self_check(pybind11::module_& m) {
  namespace py = pybind11;
  m.def(
      "set_checker",
      [](py::object checker) {
        const bool is_there = !checker.is_none();
        python_checker() = std::move(checker);
        set_checker(is_there ? &ask_python_in_thread : nullptr, &warn_in_python);
      },
      py::arg("checker"));
  m.def("verdicts", &verdicts);
  m.def("take_expired_wait", &take_expired_wait, py::arg("device"));
#ifdef VARLEN_RNN_EMULATE
  m.def("forget_verdicts", &forget_verdicts);
#endif
}

}  // namespace varlen_rnn::cuda
