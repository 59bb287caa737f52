// What Python calls directly, in the module _C.
#pragma once

#include <pybind11/pybind11.h>

namespace varlen_rnn {

void define_direct_calls(pybind11::module_& m);

}  // namespace varlen_rnn
