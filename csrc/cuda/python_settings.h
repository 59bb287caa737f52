// Settings as a class of a Python module.
#pragma once

#include <pybind11/pybind11.h>

#include "cuda/settings.h"

namespace varlen_rnn::cuda {

template <class T, std::atomic<T> Settings::* field>
void define_setting(pybind11::class_<Settings>& type, const char* name) {
  type.def_property(
      name, [](const Settings& all) { return (all.*field).load(); },
      [](Settings& all, T value) { (all.*field).store(value); });
}

inline void define_settings(pybind11::module_& m) {
  // module_local: _C_cuda and the tests' _emulated may be in one process.
  pybind11::class_<Settings> type(m, "Settings", pybind11::module_local());
  define_setting<bool, &Settings::persistent>(type, "persistent");
  define_setting<int, &Settings::cluster_size>(type, "cluster_size");
#ifdef VARLEN_RNN_EMULATE
  define_setting<bool, &Settings::layouts_on_device>(type, "layouts_on_device");
#endif
  m.def("settings", &settings, pybind11::return_value_policy::reference);
}

}  // namespace varlen_rnn::cuda
