// Settings as a class of a Python module.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "cuda/settings.h"

namespace varlen_rnn::cuda {

template <class T, std::atomic<T> Settings::* field>
void define_setting(pybind11::class_<Settings>& type, const char* name) {
  type.def_property(
      name, [](const Settings& all) { return (all.*field).load(); },
      [](Settings& all, T value) { (all.*field).store(value); });
}

inline void set_wait_limit(Settings& all, double seconds) {
  if (!(seconds > 0)) {
    throw pybind11::value_error("wait_limit_s must be positive, got " + std::to_string(seconds));
  }
  all.wait_limit_s = seconds;
}

// None, "persistent" or "generic".
inline std::optional<std::string> forced_path(const Settings&) {
  if (forced().path == Path::kAny) return {};
  return forced().path == Path::kPersistent ? "persistent" : "generic";
}
inline void force_path(const Settings&, const std::optional<std::string>& path) {
  if (path && *path != "persistent" && *path != "generic") {
    throw pybind11::value_error("force_path must be \"persistent\", \"generic\" or None, got \"" +
                                *path + "\"");
  }
  forced().path = !path ? Path::kAny : *path == "persistent" ? Path::kPersistent : Path::kGeneric;
}

inline void define_settings(pybind11::module_& m) {
  // module_local: _C_cuda and the tests' _emulated may be in one process.
  pybind11::class_<Settings> type(m, "Settings", pybind11::module_local());
  define_setting<bool, &Settings::persistent>(type, "persistent");
  define_setting<int, &Settings::cluster_size>(type, "cluster_size");
  define_setting<bool, &Settings::self_check>(type, "self_check");
  type.def_property(
      "wait_limit_s", [](const Settings& all) { return all.wait_limit_s.load(); }, &set_wait_limit);
  type.def_property("force_path", &forced_path, &force_path);
  type.def_property(
      "force_max_teams", [](const Settings&) { return forced().max_teams; },
      [](const Settings&, int teams) { forced().max_teams = teams; });
#ifdef VARLEN_RNN_EMULATE
  define_setting<bool, &Settings::layouts_on_device>(type, "layouts_on_device");
#endif
  m.def("settings", &settings, pybind11::return_value_policy::reference);
  m.def("keep_plans", [](bool keeps) { keeps_plans() = keeps; }, pybind11::arg("keeps"));
  m.def("clear_plans", &clear_plans, pybind11::call_guard<pybind11::gil_scoped_release>());
  m.def("num_kept_layouts", &num_kept_layouts);
}

}  // namespace varlen_rnn::cuda
