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
//   places     uint64 buffer, one a weight; all bits set where a weight has no memory of its own
//
// The weights must be plain tensors: a subclass may answer for another tensor inside it.

#include <Python.h>
#include <torch/csrc/autograd/python_variable.h>

namespace {

constexpr int64_t kNoVersion = -1;
constexpr uint64_t kNoPlace = ~uint64_t{0};

struct Buffer {
  Py_buffer view{};
  bool ok;
  explicit Buffer(PyObject* from) : ok(PyObject_GetBuffer(from, &view, PyBUF_SIMPLE) == 0) {}
  ~Buffer() {
    if (ok) PyBuffer_Release(&view);
  }
  template <typename Number>
  const Number* data() const {
    return static_cast<const Number*>(view.buf);
  }
  Py_ssize_t size() const { return view.len / static_cast<Py_ssize_t>(sizeof(int64_t)); }
};

// Whether a weak reference refers to this very object, which is alive: the caller holds it.
bool refers_to(PyObject* reference, PyObject* object) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* found = nullptr;
  if (PyWeakref_GetRef(reference, &found) != 1) {
    PyErr_Clear();
    return false;
  }
  const bool same = found == object;
  Py_DECREF(found);
  return same;
#else
  return PyWeakref_GET_OBJECT(reference) == object;
#endif
}

bool holds(PyObject* object, PyObject* reference, int64_t version, uint64_t place) {
  if (!refers_to(reference, object) || !THPVariable_Check(object)) return false;
  at::TensorImpl* tensor = THPVariable_Unpack(object).unsafeGetTensorImpl();
  if (version != kNoVersion) {
    if (tensor->is_inference()) return false;
    if (static_cast<int64_t>(tensor->version_counter().current_version()) != version) return false;
  }
  if (place == kNoPlace) return !tensor->has_storage();
  return reinterpret_cast<uintptr_t>(tensor->data()) == place;
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
      const Py_ssize_t at = positions.data<int64_t>()[i];
      same = at >= 0 && at < PyTuple_GET_SIZE(given[0]) &&
          holds(PyTuple_GET_ITEM(given[0], at), PyList_GET_ITEM(given[2], i),
                versions.data<int64_t>()[i], places.data<uint64_t>()[i]);
    }
  } catch (...) {  // a tensor that cannot say where it lies: look closer
    PyErr_Clear();
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
