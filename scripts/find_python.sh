#!/bin/sh
# Prints a Python that the project supports, or says in one line why there is none: find_python.sh [PYTHON]
# PYTHON names one; else it is the one that made .venv, else the first of those on PATH and of pyenv's.
set -u
cd "$(dirname "$0")/.." || exit 1
range=$(sed -nE 's/^requires-python = ">=([0-9.]+),<([0-9.]+)".*/\1 \2/p' pyproject.toml)
least=${range% *} below=${range#* }
wanted="Python $least or newer, below $below"

# Written for any Python, since it is what tells them apart.
check='
import sys

def numbers(text):
    return tuple(int(number) for number in text.split("."))

version = ".".join(str(number) for number in sys.version_info[:3])
if sys.version_info[:3] < numbers(sys.argv[1]):
    sys.exit("%s is too old" % version)
if sys.version_info[:3] >= numbers(sys.argv[2]):
    sys.exit("%s is newer than what the project is tried on" % version)
if sys.implementation.name != "cpython":
    sys.exit("%s, for which PyTorch is not made" % sys.implementation.name)
import sysconfig
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit("%s is a build without GIL, for which dependencies are not made" % version)
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit("%s has no module %s; Debian and Ubuntu: sudo apt-get install python%d.%d-venv"
             % ((version, error.name) + sys.version_info[:2]))
print(getattr(sys, "_base_executable", None) or sys.executable)
'

try() { # prints the interpreter's own path, or why it will not do to standard error
  "$1" -c "$check" "$least" "$below"
}

passed_over=
consider() {
  if answer=$(try "$1" 2>&1); then
    test -z "$passed_over" || echo "Passed over $passed_over" >&2
    echo "$answer"
    exit 0
  fi
  reason=$(printf '%s\n' "$answer" | sed '/^$/d' | tail -n 1)
  case $answer in pyenv:*) reason="a pyenv shim that stands for no version in use here" ;; esac
  passed_over="$passed_over${passed_over:+; }$1 (${reason:-does not run})"
}

if test -n "${1:-}"; then
  consider "$1"
  echo "$wanted is needed; PYTHON names $passed_over" >&2
  exit 1
fi
if test -x .venv/bin/python && try .venv/bin/python 2>/dev/null; then
  exit 0
fi
IFS=:
for name in python3.11 python3.12 python3.13 python3 python; do
  for folder in $PATH; do
    test -x "$folder/$name" && test ! -d "$folder/$name" && consider "$folder/$name"
  done
done
for python in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python; do
  case $python in */versions/3.*) consider "$python" ;; esac
done
echo "$wanted is needed, and there is none: ${passed_over:-no python on PATH}." \
  "Install one, or name it: make PYTHON=/path/to/python3" >&2
exit 1
