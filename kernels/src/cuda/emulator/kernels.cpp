// All kernels, for the processor.
#define RAGGED_EMULATED
#include "attention.cu"
#include "attention_warpgroup.cu"
#include "embed.cu"
#include "layer_norm.cu"
#include "pool.cu"
#include "search.cu"
#include "racing.cu"
