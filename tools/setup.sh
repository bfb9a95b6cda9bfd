# Shared by tools/up and tools/test (sourced): installs missing Debian packages and builds, with progress on the terminal.

say() { printf '\033[1m%s\033[0m\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# Package names of the given list files, without comments.
package_names() { sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "$@"; }

# install_packages LIST...: installs what is missing; root needs no sudo.
install_packages() {
  local name missing=()
  for name in $(package_names "$@"); do
    dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  command -v apt-get >/dev/null || die "these packages are missing and there is no apt-get here: ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "these packages are missing, and installing them needs root or sudo: ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing ${#missing[@]} packages: ${missing[*]}"
  "${as_root[@]}" apt-get update -q || die "apt-get update failed (see above)"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" ||
    die "apt-get install failed (see above)"
}

# build FOLDER "CMAKE-OPTIONS" TARGET...: configures once, then builds; ninja shows how far it is.
build() {
  local folder=$1 options=$2
  shift 2
  if [ ! -f "$folder/build.ninja" ]; then
    say "configuring $folder"
    # shellcheck disable=SC2086
    cmake -S . -B "$folder" -G Ninja $options >"$folder.configure.log" 2>&1 ||
      { tail -n 30 "$folder.configure.log" >&2; die "cmake failed, see $folder.configure.log"; }
    mv "$folder.configure.log" "$folder/configure.log"
  fi
  if [ -n "$(ninja -C "$folder" -n "$@" | grep -v 'no work to do' | grep '^\[' || true)" ]; then
    say "building $* in $folder ($(nproc) cores)"
  fi
  ninja -C "$folder" "$@" || die "the build failed (see above)"
}
