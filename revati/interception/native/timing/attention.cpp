// Attention's time depends on a batch's lengths, which change with every step: features of a batch, and
// boosted trees over them.  Asked once per engine step, in a process whose caches the engine has used since.
//
// FlashAttention-3 cuts each (request, head) into tiles of query rows and walks the context in blocks of
// tokens; long contexts are split so that all SMs have work (`prepare_varlen_num_blocks`).  `physical_us` is
// a crude schedule of that work; the trees correct it.
#include <algorithm>
#include <cmath>
#include <cstdint>

#define REVATI_API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t kBlockTokens = 128;
constexpr int64_t kDecodeTileRows = 64, kTileRows = 128;
constexpr int64_t kGraphSplits = 32;  // vLLM's flash_attn_max_num_splits_for_cuda_graph
constexpr int64_t kMaxSplits = 128;
constexpr double kSplitMargin = 1.1;  // FA3: blocks per SM are sized for 10 % more work than there is
// What a tile costs beside its blocks, and what attention reaches of the datasheet's rates; rough on purpose.
constexpr double kTileOverheadBlocks = 2.0;
constexpr double kMemoryShare = 0.80, kFlopShare = 0.60;

constexpr int kFeatures = 22;
constexpr int kMaxSets = 2;
constexpr int kMaxFeatures = 32;  // of a forest over anything
constexpr int64_t kTreesAtOnce = 64;
constexpr int kLeaves = 32;  // of a tree, numbered from 1: a mask is an int32

// In 32 bits, which divide several times faster; what is divided are tokens, blocks and rows of one batch.
int64_t ceil_div(int64_t a, int64_t b) {
  return static_cast<uint32_t>(a + b - 1) / static_cast<uint32_t>(b);
}

}  // namespace

// ---- as revati/timing/native.py declares them ----
struct Device {
  int64_t num_q, num_kv, head_dim, sm_count;
  double memory_bytes_per_us, bf16_flop_per_us, launch_us;
};
struct Batch {
  int64_t query_tokens, context_tokens, max_context;
  int64_t pairs;           // query tokens times the context of their request, without a causal mask
  double features[kFeatures];
  double durations_us[kMaxSets];  // of the main and the combine kernel
};

// Every inner node is one test `x[feature] <= threshold`.  What the tests of one feature rule out depends only
// on where x lies among its thresholds: `masks` has a row of leaf masks, one per tree, for each such place.
struct Forest {
  int64_t features, trees, sets;
  const double *thresholds;      // ascending, feature after feature
  const int64_t *ends;           // where each feature's thresholds end
  const int32_t *masks;          // [thresholds + features, trees]
  const double *values;          // [trees, kLeaves]
  const int64_t *set_ends;       // where each set's trees end
  const double *bases;           // of each set
};

static void predict(const Forest &forest, const double *row, double *answers) {
  const int32_t *places[kMaxFeatures];
  int64_t first = 0;
  for (int64_t f = 0; f < forest.features; ++f) {
    const double *begin = forest.thresholds + first, *end = forest.thresholds + forest.ends[f];
    const int64_t below = std::lower_bound(begin, end, row[f]) - begin;  // tests with a lower threshold fail
    places[f] = forest.masks + (first + f + below) * forest.trees;
    first = forest.ends[f];
  }
  // Some trees at a time, so that the compiler joins their masks side by side.
  int64_t set = 0;
  double sum = 0;
  for (int64_t begin = 0; begin < forest.trees; begin += kTreesAtOnce) {
    const int64_t count = std::min(kTreesAtOnce, forest.trees - begin);
    int32_t left[kTreesAtOnce];
    std::copy_n(places[0] + begin, count, left);
    for (int64_t f = 1; f < forest.features; ++f)
      for (int64_t i = 0; i < count; ++i) left[i] &= places[f][begin + i];
    for (int64_t i = 0; i < count; ++i) {
      // The leftmost leaf that nothing rules out is the highest bit; it is the tree's answer.
      sum += forest.values[(begin + i) * kLeaves + (32 - __builtin_clz(static_cast<uint32_t>(left[i])))];
      if (begin + i + 1 == forest.set_ends[set]) {
        answers[set] = forest.bases[set] + sum;
        ++set;
        sum = 0;
      }
    }
  }
}

static void features(const Device &device, const int64_t *query, const int64_t *context, int64_t requests,
                     bool graph, Batch &batch) {
  const int64_t group = device.num_q / device.num_kv;
  const bool decodes = batch.query_tokens == requests;
  const int64_t min_context = *std::min_element(context, context + requests);
  int64_t max_query = 1, decode_count = requests, m_blocks_total = 0;
  double pairs = 0, walked = 0, walked_by_prompts = 0;
  if (decodes) {
    const int64_t per_request = ceil_div(group, group <= kDecodeTileRows ? kDecodeTileRows : kTileRows);
    int64_t n_blocks = 0;
    for (int64_t i = 0; i < requests; ++i) n_blocks += ceil_div(context[i], kBlockTokens);
    m_blocks_total = requests * per_request;
    walked = static_cast<double>(n_blocks * per_request);
    pairs = static_cast<double>(batch.context_tokens);
  } else {
    decode_count = 0;
    for (int64_t i = 0; i < requests; ++i) {
      max_query = std::max(max_query, query[i]);
      decode_count += query[i] == 1;
    }
    const int64_t tile = max_query * group <= kDecodeTileRows ? kDecodeTileRows : kTileRows;
    for (int64_t i = 0; i < requests; ++i) {
      const int64_t m_blocks = ceil_div(query[i] * group, tile);
      const double seen = static_cast<double>(context[i]) - static_cast<double>(query[i] - 1) * 0.5;
      m_blocks_total += m_blocks;
      pairs += static_cast<double>(query[i]) * seen;  // `seen` by the average query token
      const double blocks = static_cast<double>(m_blocks) * std::max(seen * (1.0 / kBlockTokens) + 0.5, 1.0);
      walked += blocks;
      if (query[i] > 1) walked_by_prompts += blocks;
    }
  }
  const double num_kv = static_cast<double>(device.num_kv), head_dim = static_cast<double>(device.head_dim);
  const double sms = static_cast<double>(device.sm_count), q_heads = static_cast<double>(device.num_q);
  const double work_blocks = walked * num_kv;
  const int64_t blocks_per_sm = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(work_blocks * kSplitMargin / sms)));
  const int64_t most = graph ? kGraphSplits : kMaxSplits;
  const int64_t longest_blocks = ceil_div(batch.max_context, kBlockTokens);
  const int64_t splits = std::min(most, ceil_div(longest_blocks, blocks_per_sm));
  int64_t whole_tiles = requests;
  if (splits > 1) {
    whole_tiles = 0;
    for (int64_t i = 0; i < requests; ++i)
      whole_tiles += std::min(most, ceil_div(ceil_div(context[i], kBlockTokens), blocks_per_sm));
  }
  const double tiles = static_cast<double>(std::max(whole_tiles, m_blocks_total)) * num_kv;

  const double context_tokens = static_cast<double>(batch.context_tokens);
  const double query_tokens = static_cast<double>(batch.query_tokens), count = static_cast<double>(requests);
  const double kv_bytes = 4.0 * context_tokens * num_kv * head_dim, qo_bytes = 4.0 * query_tokens * q_heads * head_dim;
  const double memory_us = (kv_bytes + qo_bytes) / (device.memory_bytes_per_us * kMemoryShare);
  const double compute_us = 4.0 * pairs * q_heads * head_dim / (device.bf16_flop_per_us * kFlopShare);
  const double per_sm = (work_blocks + tiles * kTileOverheadBlocks) / sms;
  // One SM alone streams its share of the bandwidth several times over.
  const double chain_blocks =
      std::max(static_cast<double>(std::min(blocks_per_sm, longest_blocks)) + kTileOverheadBlocks, per_sm);
  const double block_us = kBlockTokens * 4.0 * head_dim * sms / device.memory_bytes_per_us;
  const double physical_us = device.launch_us + std::max({memory_us, compute_us, 0.5 * chain_blocks * block_us});
  const double waves = tiles / sms;

  double *out = batch.features;
  for (const double feature :
       {std::log(physical_us), std::log(memory_us), std::log(compute_us), std::log(count), std::log(context_tokens),
        std::log(query_tokens), std::log(context_tokens / count),
        static_cast<double>(batch.max_context * requests) / context_tokens, std::log(static_cast<double>(max_query)),
        std::log(waves), waves / std::ceil(waves), std::log(static_cast<double>(blocks_per_sm)),
        static_cast<double>(splits), static_cast<double>(decode_count) / count, walked_by_prompts / walked, q_heads,
        num_kv, std::log(static_cast<double>(group)), std::log(walked * kBlockTokens / context_tokens),
        std::log(static_cast<double>(longest_blocks) * sms / work_blocks),
        std::log(static_cast<double>(min_context) * count / context_tokens), graph ? 1.0 : 0.0})
    *out++ = feature;
}

// `context` includes the query tokens; up to `graph_tokens` of them FA3 is told how often to split.  Without a
// forest there are no durations, without tokens no features.
REVATI_API void revati_describe_batch(const Device *device, const Forest *forest, const int64_t *query,
                                      const int64_t *context, int64_t requests, int64_t graph_tokens, Batch *batch) {
  *batch = {};
  for (int64_t i = 0; i < requests; ++i) {
    batch->query_tokens += query[i];
    batch->context_tokens += context[i];
    batch->max_context = std::max(batch->max_context, context[i]);
    batch->pairs += query[i] * context[i];
  }
  if (batch->query_tokens <= 0 || batch->max_context <= 0) return;
  features(*device, query, context, requests, batch->query_tokens <= graph_tokens, *batch);
  if (!forest) return;
  double logs[kMaxSets] = {};
  predict(*forest, batch->features, logs);
  // The main kernel's trees correct the physical schedule.
  for (int64_t set = 0; set < forest->sets; ++set)
    batch->durations_us[set] = std::exp(logs[set] + (set == 0 ? batch->features[0] : 0.0));
}

// The trees alone, for a row of features.
REVATI_API void revati_forest_predict(const Forest *forest, const double *row, double *answers) {
  predict(*forest, row, answers);
}
