// unchanged(arguments, positions, objects, versions, places) -> bool
//
// Whether the weights among the arguments of a call are the same objects as at the last look, at
// the same versions and places in memory. The same as `Weighed.still_holds` in weights.py, which
// is what runs where this could not be built; True here must imply True there.
//
//   arguments  tuple of the call's arguments
//   positions  int64 buffer: where among them the weights are
//   objects    list of weak references, one a weight
//   versions   int64 buffer, one a weight; -1 where a weight keeps none
//   places     int64 buffer, one a weight; -1 where a weight has no memory of its own

#include <Python.h>
#include <torch/csrc/autograd/python_variable.h>

namespace {

constexpr int64_t kUnknown = -1;

struct Buffer {
  Py_buffer view{};
  bool ok;
  explicit Buffer(PyObject* from) : ok(PyObject_GetBuffer(from, &view, PyBUF_SIMPLE) == 0) {}
  ~Buffer() {
    if (ok) PyBuffer_Release(&view);
  }
  const int64_t* data() const { return static_cast<const int64_t*>(view.buf); }
  Py_ssize_t size() const { return view.len / static_cast<Py_ssize_t>(sizeof(int64_t)); }
};

// Whether a weak reference refers to this very object, which is alive: the caller holds it.
bool refers_to(PyObject* reference, PyObject* object) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* found = nullptr;
  if (PyWeakref_GetRef(reference, &found) != 1) return false;
  const bool same = found == object;
  Py_DECREF(found);
  return same;
#else
  return PyWeakref_GET_OBJECT(reference) == object;
#endif
}

bool holds(PyObject* object, PyObject* reference, int64_t version, int64_t place) {
  if (!refers_to(reference, object) || !THPVariable_Check(object)) return false;
  at::TensorImpl* tensor = THPVariable_Unpack(object).unsafeGetTensorImpl();
  if (version != kUnknown) {
    if (tensor->is_inference()) return false;
    if (static_cast<int64_t>(tensor->version_counter().current_version()) != version) return false;
  }
  return place == kUnknown || reinterpret_cast<int64_t>(tensor->data()) == place;
}

PyObject* unchanged(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (count != 5 || !PyTuple_Check(given[0]) || !PyList_Check(given[2])) {
    PyErr_SetString(PyExc_TypeError, "unchanged(tuple, buffer, list, buffer, buffer)");
    return nullptr;
  }
  const Buffer positions(given[1]), versions(given[3]), places(given[4]);
  if (!positions.ok || !versions.ok || !places.ok) return nullptr;
  const Py_ssize_t size = PyList_GET_SIZE(given[2]);
  bool same = positions.size() == size && versions.size() == size && places.size() == size;
  try {
    for (Py_ssize_t i = 0; same && i < size; ++i) {
      const Py_ssize_t at = positions.data()[i];
      same = at >= 0 && at < PyTuple_GET_SIZE(given[0]) &&
          holds(PyTuple_GET_ITEM(given[0], at), PyList_GET_ITEM(given[2], i), versions.data()[i],
                places.data()[i]);
    }
  } catch (const std::exception&) {  // a tensor that cannot say where it lies: look closer
    same = false;
  }
  return PyBool_FromLong(same);
}

PyMethodDef methods[] = {
    {"unchanged", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(unchanged)),
     METH_FASTCALL, "Whether weights are the same, unchanged and in the same place."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "deltapass_unchanged", nullptr, -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit_deltapass_unchanged() { return PyModule_Create(&module); }
