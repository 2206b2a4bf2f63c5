// Kernels and device variables that extension modules register at load time.
#pragma once
#include <cstddef>

void register_kernel(const void *host_function, const char *mangled_name);
const char *kernel_name(const void *host_function);  // null: never registered
void register_symbol(const void *host_variable, size_t bytes);
void *symbol_address(const void *host_variable);     // device memory, allocated at the first look
