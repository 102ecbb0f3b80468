#include "segment.hpp"

std::unique_ptr<Engine> make_engine(const Bundle& bundle, const Settings& settings) {
#ifdef WITH_ONNX
    if (bundle.format == "onnx") return onnx_engine(bundle, settings);
#endif
#ifdef WITH_AOTI
    if (bundle.format == "aoti") return aoti_engine(bundle, settings);
#endif
    throw Refusal(
        "This runner was built without format " + bundle.format,
        "Configure it with -DWITH_ONNX=ON or -DWITH_AOTI=ON, or export in another format");
}
