#!/bin/sh
# Print the path of a supported Python, or one line with the reason why there is none: find_python.sh [PYTHON]
# Without PYTHON: the one that created .venv, otherwise the first one on PATH or installed by pyenv.
set -u
cd "$(dirname "$0")/.." || exit 1
range=$(sed -nE 's/^requires-python = ">=([0-9.]+),<([0-9.]+)".*/\1 \2/p' pyproject.toml)
least=${range% *} below=${range#* }
required="Python $least or newer, below $below"

# Runs on any Python, because it checks the version.
check='
import sys

def numbers(text):
    return tuple(int(number) for number in text.split("."))

version = ".".join(str(number) for number in sys.version_info[:3])
if sys.version_info[:3] < numbers(sys.argv[1]):
    sys.exit("%s is too old" % version)
if sys.version_info[:3] >= numbers(sys.argv[2]):
    sys.exit("%s is newer than the tested versions" % version)
if sys.implementation.name != "cpython":
    sys.exit("%s, which PyTorch does not support" % sys.implementation.name)
import sysconfig
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit("%s is a build without GIL, which dependencies do not support" % version)
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit("%s has no module %s; Debian and Ubuntu: sudo apt-get install python%d.%d-venv"
             % ((version, error.name) + sys.version_info[:2]))
print(getattr(sys, "_base_executable", None) or sys.executable)
'

try() { # prints the path of the interpreter, or to standard error why it is unsuitable
  "$1" -c "$check" "$least" "$below"
}

skipped=
consider() {
  if answer=$(try "$1" 2>&1); then
    test -z "$skipped" || echo "Skipped $skipped" >&2
    echo "$answer"
    exit 0
  fi
  reason=$(printf '%s\n' "$answer" | sed '/^$/d' | tail -n 1)
  case $answer in pyenv:*) reason="a pyenv shim without a selected version" ;; esac
  skipped="$skipped${skipped:+; }$1 (${reason:-does not run})"
}

if test -n "${1:-}"; then
  consider "$1"
  echo "$required is required; PYTHON selects $skipped" >&2
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
echo "$required is required, but not found: ${skipped:-no python on PATH}." \
  "Install one, or set its path: make PYTHON=/path/to/python3" >&2
exit 1
