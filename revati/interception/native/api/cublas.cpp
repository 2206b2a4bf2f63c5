// libcublas.so.13: matrix products become launches keyed by shape and types.
#include "blas_types.h"

using namespace revati;
using revati_blas::types;

namespace {

struct Handle { void *stream = nullptr; int math_mode = 0, pointer_mode = 0; };
Handle *handle(void *h) { return static_cast<Handle *>(h); }

int gemm(void *h, int op_a, int op_b, int64_t m, int64_t n, int64_t k, int operand, int result, int64_t batch) {
  load_blas();
  launch_gemm(handle(h)->stream, types(operand, result, op_a, op_b), n, m, k, batch);
  return 0;
}

}  // namespace

REVATI_API int cublasCreate_v2(void **out) { *out = new Handle; return 0; }
REVATI_API int cublasDestroy_v2(void *h) { delete handle(h); return 0; }
REVATI_API int cublasSetStream_v2(void *h, void *stream) { handle(h)->stream = stream; return 0; }
REVATI_API int cublasGetStream_v2(void *h, void **stream) { *stream = handle(h)->stream; return 0; }
REVATI_API int cublasSetWorkspace_v2(void *, void *, size_t) { return 0; }
REVATI_API int cublasSetMathMode(void *h, int mode) { handle(h)->math_mode = mode; return 0; }
REVATI_API int cublasGetMathMode(void *h, int *mode) { *mode = handle(h)->math_mode; return 0; }
REVATI_API int cublasSetPointerMode_v2(void *h, int mode) { handle(h)->pointer_mode = mode; return 0; }
REVATI_API int cublasGetPointerMode_v2(void *h, int *mode) { *mode = handle(h)->pointer_mode; return 0; }
REVATI_API int cublasSetSmCountTarget(void *, int) { return 0; }
REVATI_API int cublasGetVersion_v2(void *, int *version) { *version = 130100; return 0; }
REVATI_API const char *cublasGetStatusString(int status) { return status == 0 ? "CUBLAS_STATUS_SUCCESS" : "CUBLAS_STATUS_ERROR (revati)"; }

REVATI_API int cublasGemmEx(void *h, int op_a, int op_b, int m, int n, int k, const void *, const void *, int type_a, int, const void *, int, int, const void *, void *, int type_c, int, int, int) {
  return gemm(h, op_a, op_b, m, n, k, type_a, type_c, 1);
}
REVATI_API int cublasGemmStridedBatchedEx(void *h, int op_a, int op_b, int m, int n, int k, const void *, const void *, int type_a, int, long long, const void *, int, int, long long, const void *, void *, int type_c, int, long long, int batch, int, int) {
  return gemm(h, op_a, op_b, m, n, k, type_a, type_c, batch);
}
REVATI_API int cublasSgemm_v2(void *h, int op_a, int op_b, int m, int n, int k, const float *, const float *, int, const float *, int, const float *, float *, int) { return gemm(h, op_a, op_b, m, n, k, 0, 0, 1); }
REVATI_API int cublasDgemm_v2(void *h, int op_a, int op_b, int m, int n, int k, const double *, const double *, int, const double *, int, const double *, double *, int) { return gemm(h, op_a, op_b, m, n, k, 1, 1, 1); }
REVATI_API int cublasHgemm(void *h, int op_a, int op_b, int m, int n, int k, const void *, const void *, int, const void *, int, const void *, void *, int) { return gemm(h, op_a, op_b, m, n, k, 2, 2, 1); }
REVATI_API int cublasSgemmStridedBatched(void *h, int op_a, int op_b, int m, int n, int k, const float *, const float *, int, long long, const float *, int, long long, const float *, float *, int, long long, int batch) { return gemm(h, op_a, op_b, m, n, k, 0, 0, batch); }
REVATI_API int cublasSgemmEx(void *h, int op_a, int op_b, int m, int n, int k, const float *, const void *, int type_a, int, const void *, int, int, const float *, void *, int type_c, int) { return gemm(h, op_a, op_b, m, n, k, type_a, type_c, 1); }
REVATI_API int cublasSgemv_v2(void *h, int op, int m, int n, const float *, const float *, int, const float *, int, const float *, float *, int) { return gemm(h, op, 0, m, 1, n, 0, 0, 1); }
