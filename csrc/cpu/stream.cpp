#include "cpu/stream.h"

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "cpu/scratch.h"

namespace varlen_rnn {

class Stream::Use {
 public:
  explicit Use(std::atomic<bool>& in_use) : in_use_(in_use) {
    if (in_use_.exchange(true, std::memory_order_acquire)) {
      throw std::runtime_error("StreamingRNN: another thread is in a call of the same object");
    }
  }
  ~Use() {
    if (!for_good_) in_use_.store(false, std::memory_order_release);
  }
  void keep_for_good() { for_good_ = true; }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  std::atomic<bool>& in_use_;
  bool for_good_ = false;
};

Stream::Stream(const LayerSizes& sizes, std::vector<Weights> layers, int64_t num_rows)
    : sizes_(sizes), num_rows_(num_rows), layers_(std::move(layers)) {
  copy_weights();
  const size_t states = layers_.size() * static_cast<size_t>(num_rows);
  h_.assign(states * static_cast<size_t>(sizes.output_size) * sizes.element(), 0);
  if (sizes.is_lstm) {
    c_.assign(states * static_cast<size_t>(sizes.hidden_size) * sizes.cell_element(), 0);
  }
  seen_.assign(static_cast<size_t>(num_rows), 0);
  chosen_.reserve(static_cast<size_t>(num_rows));
}

// All into one block: a step reads every weight once, at the speed of the caches, and with small pages
// much of that time would go into finding them.
void Stream::copy_weights() {
  const int64_t gates = sizes_.is_lstm ? 4 : 3, units = sizes_.units;
  const int64_t H = sizes_.hidden_size, P = sizes_.output_size;
  const int64_t columns = (H + units - 1) / units * units * gates;
  const int64_t compute = sizes_.dtype == Dtype::kFloat64 ? 8 : 4;
  const auto matrix = [&](int64_t K) {
    const int64_t even = K + K % 2;
    return columns * (sizes_.order == WeightOrder::kInt8            ? even
                      : sizes_.order == WeightOrder::kBFloat16Pairs ? even * 2
                                                                    : K * compute);
  };
  const int64_t projection = (P + 4 * units - 1) / (4 * units) * 4 * units * H * compute;
  // Returns how many bytes there are; with memory it copies them there.
  const auto lay_out = [&](char* memory) {
    size_t total = 0;
    const auto take = [&](auto& pointer, int64_t bytes) {
      if (pointer == nullptr) return;
      if (memory != nullptr) {
        std::memcpy(memory + total, pointer, static_cast<size_t>(bytes));
        pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + total);
      }
      total += (static_cast<size_t>(bytes) + 63) / 64 * 64;
    };
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      Weights& w = layers_[layer];
      take(w.weight_ih, matrix(layer == 0 ? sizes_.input_size : P));
      take(w.weight_hh, matrix(P));
      take(w.weight_hr, projection);
      take(w.bias_ih, columns * compute);
      take(w.bias_hh, columns * compute);
      take(w.scale_ih, columns * compute);
      take(w.scale_hh, columns * compute);
    }
    return total;
  };
  const size_t total = lay_out(nullptr), alignment = total < kHugePage / 2 ? 64 : kHugePage;
  const size_t bytes = (total + alignment - 1) / alignment * alignment;
  weights_.reset(std::aligned_alloc(alignment, bytes));
  if (weights_ == nullptr) throw std::bad_alloc();
  use_huge_pages(weights_.get(), bytes, kHugePage);
  lay_out(static_cast<char*>(weights_.get()));
}

// Copies the numbers, so that nobody changes them behind the checks.
void Stream::choose(Which which) {
  if (which.numbers == nullptr) {
    if (which.count != num_rows_) throw std::invalid_argument("Stream: wrong number of rows");
    chosen_.resize(static_cast<size_t>(num_rows_));
    for (int64_t i = 0; i < num_rows_; ++i) chosen_[static_cast<size_t>(i)] = i;
    return;
  }
  std::string wrong;
  int64_t checked = 0;
  chosen_.clear();
  for (; checked < which.count && wrong.empty(); ++checked) {
    const int64_t row = which.numbers[checked];
    const bool is_row = row >= 0 && row < num_rows_;
    if (is_row && !seen_[static_cast<size_t>(row)]) {
      seen_[static_cast<size_t>(row)] = 1;
      chosen_.push_back(row);  // at most num_rows, for which there is room
      continue;
    }
    wrong = is_row ? "distinct" : "in [0, num_rows) = [0, " + std::to_string(num_rows_) + ")";
    wrong += ", got " + std::to_string(row) + (is_row ? " again" : "") + " at index " +
             std::to_string(checked);
  }
  for (int64_t row : chosen_) seen_[static_cast<size_t>(row)] = 0;
  if (!wrong.empty()) throw std::invalid_argument("StreamingRNN: rows must be " + wrong);
}

void Stream::run(Which which, const void* x, int64_t num_steps, void* out, const Pool& pool) {
  const Use use(in_use_);
  choose(which);
  void* c = sizes_.is_lstm ? c_.data() : nullptr;
  const Rows rows = {x,         out,       which.count, num_steps, false, chosen_.data(),
                     num_rows_, h_.data(), c,           h_.data(), c,     backwards_};
  backwards_ = (num_steps % 2 == 1) != backwards_;
  runner_.run(sizes_, layers_.data(), layers_.size(), rows, pool);
}

// Calls f(state, index, bytes, is_cell): where a row's state lies, and which row it is of [L, count, *].
template <class F>
void Stream::for_each_state(const F& f) {
  for (int is_cell = 0; is_cell < (sizes_.is_lstm ? 2 : 1); ++is_cell) {
    const size_t bytes = is_cell ? static_cast<size_t>(sizes_.hidden_size) * sizes_.cell_element()
                                 : static_cast<size_t>(sizes_.output_size) * sizes_.element();
    char* states = is_cell ? c_.data() : h_.data();
    size_t index = 0;
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      for (int64_t row : chosen_) {
        const size_t place = layer * static_cast<size_t>(num_rows_) + static_cast<size_t>(row);
        f(states + place * bytes, index++ * bytes, bytes, is_cell);
      }
    }
  }
}

void Stream::read(Which which, void* h, void* c) {
  const Use use(in_use_);
  choose(which);
  copy_states(h, c);
}

void Stream::retire(void* h, void* c) {
  Use use(in_use_);
  choose({nullptr, num_rows_});
  copy_states(h, c);
  use.keep_for_good();
}

void Stream::copy_states(void* h, void* c) {
  for_each_state([=](char* state, size_t offset, size_t bytes, int is_cell) {
    std::memcpy(static_cast<char*>(is_cell ? c : h) + offset, state, bytes);
  });
}

void Stream::load(Which which, const void* h, const void* c) {
  const Use use(in_use_);
  choose(which);
  for_each_state([=](char* state, size_t offset, size_t bytes, int is_cell) {
    std::memcpy(state, static_cast<const char*>(is_cell ? c : h) + offset, bytes);
  });
}

void Stream::reset(Which which) {
  const Use use(in_use_);
  choose(which);
  for_each_state([](char* state, size_t, size_t bytes, int) { std::memset(state, 0, bytes); });
}

}  // namespace varlen_rnn
