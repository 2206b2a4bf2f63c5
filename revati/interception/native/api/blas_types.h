// Shared by the cuBLAS and cuBLASLt stand-ins.
// cuBLAS is column-major: its (m, n, k) is (n, m, k) of the row-major product that the frameworks mean.
#pragma once
#include <mutex>
#include <string>
#include <unordered_set>

#include "../core/core.h"

namespace revati_blas {

// cudaDataType -> the names that the timing database uses
inline const char *type_name(int type) {
  switch (type) {
    case 0: return "f32";
    case 1: return "f64";
    case 2: return "f16";
    case 3: return "s8";
    case 14: return "bf16";
    case 28: return "f8e4m3";
    case 29: return "f8e5m2";
    default: return "other";
  }
}
// "bf16>bf16:TN": operand and result types, then the operations on A and B as cuBLAS was called.
inline const char *types(int operand, int result, int op_a, int op_b) {
  static std::unordered_set<std::string> interned;
  std::lock_guard<std::recursive_mutex> lock(revati::mutex);
  const char ops[] = {op_a ? 'T' : 'N', op_b ? 'T' : 'N', 0};
  return interned.insert(std::string(type_name(operand)) + ">" + type_name(result) + ":" + ops).first->c_str();
}

}  // namespace revati_blas
