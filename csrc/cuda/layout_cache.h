// What kernels are told of a layout beside its arrays: made of them on the device, and kept for the
// next layer or pass with the same layout.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/tensors.h"

namespace varlen_rnn::cuda {

// The plan for a number of directions and teams, with its memory.
struct PlanTensors {
  int directions, teams, capacity;  // as in Plan
  OptionalTensor memory;

  // Launches.
  PlanTensors(const DeviceLayout& layout, int64_t num_directions, int64_t num_teams, Place place,
              void* stream);

  Turn* turns() const;
  int32_t* first_step() const;

 private:
  int64_t memory_of_turns() const;
};

class DerivedLayout {
 public:
  // Launches. `sizes` are batch_sizes, perhaps from the host; of `layout` the sizes alone count.
  DerivedLayout(DeviceLayout layout, const Tensor& sizes, const Tensor& final_segment,
                bool from_host, Place place, void* stream);

  // On the device: [S], [S], [G].
  const Tensor& batch_sizes() const { return batch_sizes_; }
  const Tensor& first_token() const { return first_token_; }
  const Tensor& final_row() const { return final_row_; }

  // Made at the first call for these numbers. `layout` is that of the constructor with all its arrays.
  std::shared_ptr<const PlanTensors> plan(const DeviceLayout& layout, int64_t num_directions,
                                          int64_t num_teams, void* stream);
  size_t bytes();

 private:
  Place place_;
  Tensor batch_sizes_, first_token_, final_row_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<const PlanTensors>> plans_;
};

// What a derived layout depends on: arrays on the device by where they are, for they are kept along
// with it, so that nothing else can come to lie there; batch_sizes on the host by their values.
struct LayoutKey {
  struct Array {
    const void* data = nullptr;
    int64_t size = 0, stride = 0;
    bool operator==(const Array& other) const {
      return data == other.data && size == other.size && stride == other.stride;
    }
  };

  Place place;
  void* stream;
  int64_t num_flat_rows;  // R, which no row of a plan exceeds
  std::vector<int64_t> host_batch_sizes;
  std::array<Array, 5> arrays;

  bool operator==(const LayoutKey& other) const {
    return place == other.place && stream == other.stream && num_flat_rows == other.num_flat_rows &&
           host_batch_sizes == other.host_batch_sizes && arrays == other.arrays;
  }
};

// That which is kept for this key, or null.
std::shared_ptr<DerivedLayout> find_layout(const LayoutKey& key);
// Keeps it, and the arrays that the key points to.
void keep_layout(const LayoutKey& key, const std::shared_ptr<DerivedLayout>& derived,
                 std::vector<Tensor> arrays);

}  // namespace varlen_rnn::cuda
