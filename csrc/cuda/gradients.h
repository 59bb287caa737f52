// What a backward pass does for all tokens in one go, before and after its steps.
#pragma once

#include "cuda/layer.h"

namespace varlen_rnn::cuda {

// Tensors for the gradients of x and the weights: without elements for those that are not wanted, zeros where
// there are no tokens.
BackwardResult room_for_gradients(const Layer& layer, bool needs_x, bool needs_weights);

// W_ih as the gradient of x takes it: by the columns of d_gates, between whose directions stand GRU's that
// are none of the input's. It is there once the pieces are set.
Tensor weight_of_columns(const Layer& layer, Pieces& pieces);

// Zeros in the gradients of the tokens that are not there: products of all mix them in.
void clear_surplus(const Layer& layer, const BackwardTensors& t, void* stream);

// Writes d_x, whose padding is zeros already.
void input_gradient(const Layer& layer, const BackwardTensors& t, const Tensor& weight,
                    void* stream, const Tensor& d_x);

// Writes the gradients of a layer's weights, from those of its gates.
void weight_gradients(const Layer& layer, const BackwardTensors& t, void* stream,
                      const BackwardResult& result);

}  // namespace varlen_rnn::cuda
