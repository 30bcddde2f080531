/* Stands where libnvinfer, libnvinfer_plugin and libnvonnxparser would be, so that TensorRT's Python bindings can be
 * imported and looked at without TensorRT. It makes nothing: every factory says no. */
#include <stddef.h>

#define SAYS_NO(name) \
    void* name(void) { return NULL; }

SAYS_NO(createInferBuilder_INTERNAL)
SAYS_NO(createInferRefitter_INTERNAL)
SAYS_NO(createInferRuntime_INTERNAL)
SAYS_NO(getBuilderPluginRegistry)
SAYS_NO(getPluginRegistry)
SAYS_NO(createNvOnnxParser_INTERNAL)
SAYS_NO(createNvOnnxParserRefitter_INTERNAL)

int initLibNvInferPlugins(void* logger, const char* prefix) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
