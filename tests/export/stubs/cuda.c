/* Stands where NVIDIA's driver would be: one GPU whose memory is this process's, for the calls that privdfs_export.gpu
 * makes. PRIVDFS_STUB_GPUS says how many there are. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int gpus(void) {
    const char* said = getenv("PRIVDFS_STUB_GPUS");
    return said ? atoi(said) : 1;
}

int cuInit(unsigned flags) { return gpus() ? 0 : 100; }
int cuDeviceGetCount(int* count) { return *count = gpus(), 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal < gpus() ? 0 : 101; }
int cuDeviceGetName(char* name, int length, int device) {
    strncpy(name, device ? "Stub A" : "Stub H", length);
    return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (attribute == 75) *value = device ? 8 : 9;
    else if (attribute == 76) *value = device ? 6 : 0;
    else return 1;
    return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = (void*)(intptr_t)(device + 1), 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void* context) { return context ? 0 : 201; }
int cuStreamCreate(void** stream, unsigned flags) { return *stream = (void*)0x5, 0; }
int cuStreamSynchronize(void* stream) { return stream == (void*)0x5 ? 0 : 400; }
int cuStreamDestroy_v2(void* stream) { return 0; }
int cuMemAlloc_v2(uint64_t* address, size_t size) { return *address = (uint64_t)malloc(size), *address ? 0 : 2; }
int cuMemFree_v2(uint64_t address) { return free((void*)address), 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t size) { return memcpy((void*)to, from, size), 0; }
int cuMemcpyDtoH_v2(void* to, uint64_t from, size_t size) { return memcpy(to, (void*)from, size), 0; }
