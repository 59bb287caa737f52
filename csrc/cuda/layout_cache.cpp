#include "cuda/layout_cache.h"

#include <algorithm>
#include <iterator>

#include "cuda/settings.h"

namespace varlen_rnn::cuda {
namespace {

// A training step of one module, whatever its layers and directions, has one layout and a plan for
// each pass: this is for models with several modules. And no more memory than a few activations.
constexpr size_t kMostLayouts = 8, kMostPlans = 4, kMostBytes = size_t{256} << 20;

struct Entry {
  LayoutKey key;
  std::shared_ptr<DerivedLayout> derived;
  std::vector<Tensor> arrays;

  size_t bytes() const {
    size_t sum = derived->bytes();
    for (const Tensor& array : arrays) sum += static_cast<size_t>(bytes_of(array));
    return sum;
  }
};

struct Cache {
  std::mutex mutex;
  std::vector<Entry> entries;  // the one that was used last is the last
};

// Never destroyed: at the end of the process CUDA may be gone before.
Cache& cache() {
  static Cache* const all = new Cache;
  return *all;
}

}  // namespace

PlanTensors::PlanTensors(const DeviceLayout& l, int64_t num_directions, int64_t num_teams,
                         Place place, void* stream)
    : directions(static_cast<int>(num_directions)), teams(static_cast<int>(num_teams)) {
  const int64_t slots = num_teams * kSlots;
  const int64_t longest_chain = ceil_div(l.num_tokens, slots) + l.num_steps;
  capacity = static_cast<int>(std::min(l.num_tokens, num_teams * longest_chain));
  const int64_t in_turns = memory_of_turns();
  // Turns first: they want addresses that are multiples of 16.
  memory = unfilled(place, aoti_torch_dtype_int32(),
                    {in_turns + num_teams + 1 + l.num_segments + slots});
  Plan plan{};
  plan.layout = l;
  plan.num_directions = directions;
  plan.num_teams = teams;
  plan.capacity = capacity;
  plan.turns = turns();
  plan.first_step = first_step();
  const auto scratch = [&](int64_t first, int64_t count) {
    return static_cast<int32_t*>(device_part(*memory, in_turns + num_teams + 1 + first, count));
  };
  plan.chain_start = scratch(0, l.num_segments);
  plan.load = scratch(l.num_segments, slots);
  make_plan(plan, stream);
}

Turn* PlanTensors::turns() const {
  return static_cast<Turn*>(device_part(*memory, 0, memory_of_turns()));
}

int32_t* PlanTensors::first_step() const {
  return static_cast<int32_t*>(device_part(*memory, memory_of_turns(), teams + 1));
}

int64_t PlanTensors::memory_of_turns() const {
  return int64_t{directions} * capacity * kSlots * static_cast<int64_t>(sizeof(Turn) / 4);
}

DerivedLayout::DerivedLayout(DeviceLayout layout, const Tensor& sizes, const Tensor& final_segment,
                             bool from_host, Place place, void* stream)
    : place_(place), batch_sizes_(sizes), first_token_(sizes), final_row_(sizes) {
  const auto indices = [&](int64_t count) {
    return unfilled(place, aoti_torch_dtype_int64(), {count});
  };
  if (from_host) {
    batch_sizes_ = indices(layout.num_steps);
    torch::stable::copy_(batch_sizes_, sizes, /*non_blocking=*/true);
  }
  first_token_ = indices(layout.num_steps);
  final_row_ = indices(layout.num_segments);
  layout.batch_sizes = static_cast<const int64_t*>(device_pointer(batch_sizes_));
  derive_layout(layout, static_cast<const int64_t*>(device_pointer(final_segment)),
                static_cast<int64_t*>(device_pointer(first_token_)),
                static_cast<int64_t*>(device_pointer(final_row_)), stream);
}

std::shared_ptr<const PlanTensors> DerivedLayout::plan(const DeviceLayout& layout,
                                                       int64_t num_directions, int64_t num_teams,
                                                       void* stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& known : plans_) {
    //~ plan of these numbers
    if (known->directions == num_directions && known->teams == num_teams) return known;
  }
  if (plans_.size() == kMostPlans) plans_.erase(plans_.begin());
  plans_.push_back(
      std::make_shared<const PlanTensors>(layout, num_directions, num_teams, place_, stream));
  return plans_.back();
}

size_t DerivedLayout::bytes() {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t sum = bytes_of(batch_sizes_) + bytes_of(first_token_) + bytes_of(final_row_);
  for (const auto& plan : plans_) sum += bytes_of(*plan->memory);
  return static_cast<size_t>(sum);
}

bool& keeps_plans() {
  static thread_local bool keeps = false;
  return keeps;
}

void clear_plans() {
  std::vector<Entry> forgotten;  // freed behind the lock, for torch may take others to do so
  const std::lock_guard<std::mutex> lock(cache().mutex);
  forgotten.swap(cache().entries);
}

size_t num_kept_layouts() {
  const std::lock_guard<std::mutex> lock(cache().mutex);
  return cache().entries.size();
}

std::shared_ptr<DerivedLayout> find_layout(const LayoutKey& key) {
  const std::lock_guard<std::mutex> lock(cache().mutex);
  std::vector<Entry>& entries = cache().entries;
  //~ kept layout
  const auto found = std::find_if(entries.begin(), entries.end(),
                                  [&](const Entry& entry) { return entry.key == key; });
  if (found == entries.end()) return nullptr;
  std::rotate(found, found + 1, entries.end());
  return entries.back().derived;
}

void keep_layout(const LayoutKey& key, const std::shared_ptr<DerivedLayout>& derived,
                 std::vector<Tensor> arrays) {
  std::vector<Entry> forgotten;
  const std::lock_guard<std::mutex> lock(cache().mutex);
  std::vector<Entry>& entries = cache().entries;
  entries.push_back({key, derived, std::move(arrays)});
  size_t bytes = 0, kept = 0;  // the newest, as far as they are few and small
  while (kept < std::min(entries.size(), kMostLayouts)) {
    bytes += entries[entries.size() - 1 - kept].bytes();
    if (bytes > kMostBytes) break;
    ++kept;
  }
  const auto end = entries.end() - static_cast<std::ptrdiff_t>(kept);
  std::move(entries.begin(), end, std::back_inserter(forgotten));
  entries.erase(entries.begin(), end);
}

}  // namespace varlen_rnn::cuda
