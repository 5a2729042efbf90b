#!/usr/bin/env bash
# Installs what Spillway's lab and tests need and what is missing, on Debian 12 as root:
#
#   qemu-system-x86   installed from Debian, without its recommended packages;
#   nftables          installed from Debian: a test reads the redirect's rule in nft's words, the product never runs it;
#   curl              installed from Debian: a client to try a lab with, as `spillway lab up` tells;
#   a guest kernel    Debian's generic linux-image package, downloaded and unpacked below the cache directory, never
#                     installed. The cloud flavour will not do: it lacks 9p;
#   nginx             Debian's package and those of its libraries, downloaded and unpacked likewise: the peer of the benches;
#   a newer QEMU      Debian's backport, downloaded and unpacked likewise, for live migration only: 7.2 hangs after one in four
#                     under TCG. It uses the libraries of the installed one.
#
# Usage: scripts/setup.sh [--check] [CACHE_DIR]
#
#   --check     change nothing; list what is missing and exit 1 when something is
#   CACHE_DIR   default: build/cache in the checkout. The kernel goes to CACHE_DIR/kernel/<package version>/, nginx and the
#               newer QEMU to CACHE_DIR/nginx/ and CACHE_DIR/qemu/ likewise
#
# It reports each step on stderr. When nothing is missing it does nothing, silently and at once. Several checkouts may run it at the same time.
set -euo pipefail

readonly LOCK_WAIT_SECONDS=120 # another apt or dpkg may be at work
readonly APT=(apt-get -qq
  -o "DPkg::Lock::Timeout=$LOCK_WAIT_SECONDS"
  -o APT::Sandbox::User=root # the _apt user cannot write below a root-only directory; apt would warn at each download
  -o Acquire::Retries=3)

# The download in progress; removed on every exit.
work_dir=""

say() { printf 'setup: %s\n' "$*" >&2; }

die() {
  say "$*"
  exit 1
}

remove_work_dir() {
  [[ -z $work_dir ]] || rm -rf -- "$work_dir"
}

have_qemu() { command -v qemu-system-x86_64 >/dev/null; }

have_nft() { command -v nft >/dev/null; }

have_curl() { command -v curl >/dev/null; }

# A kernel directory appears by one rename, so that what exists is whole.
have_kernel() {
  compgen -G "$1/kernel/[0-9]*/boot/vmlinuz-*" >/dev/null
}

have_nginx() {
  compgen -G "$1/nginx/[0-9]*/usr/sbin/nginx" >/dev/null
}

have_newer_qemu() {
  compgen -G "$1/qemu/[0-9]*/usr/bin/qemu-system-x86_64" >/dev/null
}

# apt-get update fails at once when another process holds the lock of the package lists (DPkg::Lock::Timeout covers
# dpkg's locks only): wait for it here.
update_package_lists() {
  local deadline=$((SECONDS + LOCK_WAIT_SECONDS)) output
  say "updating the package lists"
  until output=$("${APT[@]}" update 2>&1); do
    if [[ $output != *"Could not get lock"* ]] || ((SECONDS >= deadline)); then
      printf '%s\n' "$output" >&2
      die "apt-get update failed: check the network and /etc/apt/sources.list"
    fi
    sleep 2
  done
}

# Runs a step that needs package lists; when it fails because they are missing or stale, updates them and runs it again.
with_package_lists() {
  if ! "$@" 2>/dev/null; then
    update_package_lists
    "$@"
  fi
}

install_package() {
  DEBIAN_FRONTEND=noninteractive "${APT[@]}" install -y --no-install-recommends "$1" >/dev/null
}

install() {
  ((EUID == 0)) || die "must run as root to install $1"
  say "installing $1"
  with_package_lists install_package "$1"
}

# Prints the concrete package behind the metapackage linux-image-amd64, for instance linux-image-6.1.0-56-amd64.
kernel_package() {
  apt-cache depends --important linux-image-amd64 |
    sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*-amd64\)$/\1/p' | head -n 1 | grep .
}

download() {
  (cd "$work_dir" && rm -f -- *.deb && "${APT[@]}" download "$@" >/dev/null)
}

# Prints nginx and the packages of its shared libraries.
nginx_packages() {
  echo nginx
  apt-cache depends --important nginx | sed -n 's/^ *Depends: \(\(lib\|zlib\)[^ ]*\)$/\1/p' | sort -u | grep .
}

fetch_kernel() {
  local cache=$1 package deb version
  mkdir -p "$cache/kernel"
  work_dir=$(mktemp -d "$cache/kernel/.fetch.XXXXXX")

  package=$(with_package_lists kernel_package) || die "Debian's linux-image-amd64 is not in the package lists"
  say "downloading $package"
  with_package_lists download "$package"

  deb=$(compgen -G "$work_dir/*.deb") || die "apt-get download left no package behind"
  version=$(dpkg-deb -f "$deb" Version)
  say "unpacking $package $version into $cache/kernel/$version"
  dpkg-deb -x "$deb" "$work_dir/root"
  # Another run may have been faster. Its result is the same.
  mv -T "$work_dir/root" "$cache/kernel/$version" 2>/dev/null || have_kernel "$cache" ||
    die "cannot create $cache/kernel/$version"
}

fetch_nginx() {
  local cache=$1 packages deb version
  mkdir -p "$cache/nginx"
  work_dir=$(mktemp -d "$cache/nginx/.fetch.XXXXXX")

  packages=$(with_package_lists nginx_packages) || die "Debian's nginx is not in the package lists"
  say "downloading" $packages
  # shellcheck disable=SC2086 # a word for each package
  with_package_lists download $packages

  mkdir "$work_dir/root"
  for deb in "$work_dir"/*.deb; do
    dpkg-deb -x "$deb" "$work_dir/root"
  done
  version=$(dpkg-deb -f "$work_dir"/nginx_*.deb Version)
  say "unpacked nginx $version into $cache/nginx/$version"
  mv -T "$work_dir/root" "$cache/nginx/$version" 2>/dev/null || have_nginx "$cache" ||
    die "cannot create $cache/nginx/$version"
  remove_work_dir
}

# Runs apt-get with the package lists of the backports alone, which are no business of the machine's configuration.
backports_apt() {
  apt-get -qq -o Dir::Etc::SourceList="$work_dir/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$work_dir/apt/lists" -o Dir::Cache="$work_dir/apt/cache" -o APT::Sandbox::User=root -o Acquire::Retries=3 "$@"
}

fetch_newer_qemu() {
  local cache=$1 codename mirror version package
  mkdir -p "$cache/qemu"
  work_dir=$(mktemp -d "$cache/qemu/.fetch.XXXXXX")
  mkdir -p "$work_dir/apt/lists/partial" "$work_dir/apt/cache/archives/partial" "$work_dir/root"

  codename=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
  # Backports lie where the machine gets its release from.
  mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' | sed -n "s/^$codename //p" | head -n 1)
  [[ -n $mirror ]] || die "apt has no source for $codename: check /etc/apt/sources.list"
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s-backports main\n' "$mirror" "$codename" \
    >"$work_dir/apt/sources.list"
  say "updating the package lists of $codename-backports"
  backports_apt update || die "apt-get update failed: check the network"
  say "downloading QEMU from $codename-backports"
  (cd "$work_dir" && backports_apt download qemu-system-x86 qemu-system-common qemu-system-data seabios >/dev/null) ||
    die "QEMU is not in $codename-backports"

  version=$(dpkg-deb -f "$(compgen -G "$work_dir/qemu-system-x86_*.deb")" Version)
  version=${version#*:} # without the epoch
  say "unpacking QEMU $version into $cache/qemu/$version"
  for package in "$work_dir"/*.deb; do
    dpkg-deb -x "$package" "$work_dir/root"
  done
  if ldd "$work_dir/root/usr/bin/qemu-system-x86_64" | grep 'not found' >&2; then
    die "QEMU $version lacks these libraries, which the installed qemu-system-x86 should have brought"
  fi
  mv -T "$work_dir/root" "$cache/qemu/$version" 2>/dev/null || have_newer_qemu "$cache" || die "cannot create $cache/qemu/$version"
  remove_work_dir
}

main() {
  local check=false cache="" missing=()
  while (($#)); do
    case $1 in
      --check) check=true ;;
      -h | --help)
        sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        return
        ;;
      -*) die "unknown option $1; see --help" ;;
      *) [[ -z $cache ]] || die "more than one cache directory; see --help"; cache=$1 ;;
    esac
    shift
  done
  cache=${cache:-$(dirname -- "${BASH_SOURCE[0]}")/../build/cache}

  have_qemu || missing+=("qemu-system-x86 (Debian package)")
  have_nft || missing+=("nftables (Debian package)")
  have_curl || missing+=("curl (Debian package)")
  have_kernel "$cache" || missing+=("guest kernel in $cache/kernel")
  have_nginx "$cache" || missing+=("nginx in $cache/nginx")
  have_newer_qemu "$cache" || missing+=("QEMU for live migration in $cache/qemu")
  ((${#missing[@]})) || return 0
  if $check; then
    printf 'missing: %s\n' "${missing[@]}"
    return 1
  fi

  command -v apt-get >/dev/null || die "needs a Debian system with apt-get; missing: ${missing[*]}"
  mkdir -p "$cache"
  cache=$(realpath -- "$cache")
  trap remove_work_dir EXIT
  trap 'exit 130' INT TERM
  have_qemu || install qemu-system-x86
  have_nft || install nftables
  have_curl || install curl
  have_kernel "$cache" || { fetch_kernel "$cache" && remove_work_dir; }
  have_nginx "$cache" || fetch_nginx "$cache"
  have_newer_qemu "$cache" || fetch_newer_qemu "$cache"
}

main "$@"
