// libcublasLt.so.13: matrix products through descriptors.
#include <cstring>

#include "blas_types.h"
#include "cuda_version.h"

using namespace revati;
using revati_blas::types;

namespace {

struct Handle { int unused; };
struct Layout { int type; int64_t rows, cols, ld; int32_t batch = 1; };
struct Descriptor { int op_a = 0, op_b = 0; };
static_assert(sizeof(Layout) <= 64 && sizeof(Descriptor) <= 256, "fit the opaque structs of cublasLt.h");

}  // namespace

REVATI_API int cublasLtCreate(void **out) { *out = new Handle; return 0; }
REVATI_API int cublasLtDestroy(void *h) { delete static_cast<Handle *>(h); return 0; }
REVATI_API size_t cublasLtGetVersion() { return 130100; }
REVATI_API size_t cublasLtGetCudartVersion() { return kCudaVersion; }
REVATI_API const char *cublasLtGetStatusString(int status) { return status == 0 ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_ERROR (revati)"; }
REVATI_API int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  *out = new Layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(cols), ld, 1};
  return 0;
}
REVATI_API int cublasLtMatrixLayoutInit_internal(void *out, size_t, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  *static_cast<Layout *>(out) = Layout{type, static_cast<int64_t>(rows), static_cast<int64_t>(cols), ld, 1};
  return 0;
}
REVATI_API int cublasLtMatrixLayoutDestroy(void *layout) { delete static_cast<Layout *>(layout); return 0; }
REVATI_API int cublasLtMatrixLayoutSetAttribute(void *layout, int attribute, const void *value, size_t bytes) {
  if (attribute == 5) std::memcpy(&static_cast<Layout *>(layout)->batch, value, bytes < 4 ? bytes : 4);  // BATCH_COUNT
  return 0;
}
REVATI_API int cublasLtMatmulDescCreate(void **out, int, int) { *out = new Descriptor; return 0; }
REVATI_API int cublasLtMatmulDescInit_internal(void *out, size_t, int, int) { *static_cast<Descriptor *>(out) = Descriptor(); return 0; }
REVATI_API int cublasLtMatmulDescDestroy(void *descriptor) { delete static_cast<Descriptor *>(descriptor); return 0; }
REVATI_API int cublasLtMatmulDescSetAttribute(void *descriptor, int attribute, const void *value, size_t) {
  auto *d = static_cast<Descriptor *>(descriptor);
  if (attribute == 3) std::memcpy(&d->op_a, value, sizeof d->op_a);  // TRANSA
  if (attribute == 4) std::memcpy(&d->op_b, value, sizeof d->op_b);  // TRANSB
  return 0;
}
REVATI_API int cublasLtMatmulPreferenceCreate(void **out) { *out = new Descriptor; return 0; }
REVATI_API int cublasLtMatmulPreferenceDestroy(void *preference) { delete static_cast<Descriptor *>(preference); return 0; }
REVATI_API int cublasLtMatmulPreferenceSetAttribute(void *, int, const void *, size_t) { return 0; }
REVATI_API int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int requested, void *results, int *returned) {
  struct Result { uint64_t algo[8]; size_t workspace; int state; float waves; int reserved[4]; };
  if (requested > 0) { auto *first = static_cast<Result *>(results); std::memset(first, 0, sizeof *first); first->waves = 1.0f; }
  *returned = requested > 0 ? 1 : 0;
  return 0;
}
REVATI_API int cublasLtMatmul(void *, void *descriptor, const void *, const void *, const void *layout_a, const void *, const void *, const void *, const void *, const void *, void *, const void *layout_d, const void *, void *, size_t, void *stream) {
  const auto *d = static_cast<Descriptor *>(descriptor);
  const auto *a = static_cast<const Layout *>(layout_a), *out = static_cast<const Layout *>(layout_d);
  const int64_t k = d->op_a ? a->rows : a->cols;
  load_blas();
  launch_gemm(stream, types(a->type, out->type, d->op_a, d->op_b), out->cols, out->rows, k, out->batch);
  return 0;
}
