// CUTLASS products, which an extension module launches like any other kernel.
#pragma once
#include <cstdint>

struct CutlassProduct {
  const char *types;  // as `revati_blas::types` has them; null: the kernel is none
  int64_t m, n, k;    // row-major: out[m, n] = a[m, k] @ b[k, n]
};
CutlassProduct cutlass_product(const char *mangled_name, void **arguments);
