// A C++ program without an interpreter that runs what torch.export and AOTInductor made:
//   run_package PACKAGE INPUTS OUTPUTS LIBRARY...
// INPUTS is a tuple of tensors by torch.save, OUTPUTS is written as torch.load reads it. The libraries are
// loaded first, in their order: varlen_rnn/_C*.so holds the ops, and names symbols of libpython.
#include <ATen/core/ivalue.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s PACKAGE INPUTS OUTPUTS LIBRARY...\n", argv[0]);
    return 2;
  }
  for (int i = 4; i < argc; ++i) {
    if (dlopen(argv[i], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      std::fprintf(stderr, "%s\n", dlerror());
      return 1;
    }
  }
  std::ifstream file(argv[2], std::ios::binary);
  const std::vector<char> saved{std::istreambuf_iterator<char>(file), {}};
  const c10::IValue loaded = torch::jit::pickle_load(saved);
  std::vector<at::Tensor> inputs;
  for (const c10::IValue& input : loaded.toTupleRef().elements()) {
    inputs.push_back(input.toTensor());
  }
  torch::inductor::AOTIModelPackageLoader loader(argv[1]);
  const std::vector<at::Tensor> outputs = loader.run(inputs);
  const std::vector<c10::IValue> values(outputs.begin(),
                                        outputs.end());  // a tuple, not a TensorList
  const std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create(values));
  std::ofstream(argv[3], std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}
