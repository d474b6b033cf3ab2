# shellcheck shell=bash disable=SC2154 # bin/build sets the variables
# common.sh: what the other files of this buildpack use.

say() { echo "$*"; }

warn() { echo " !     $*"; }

fail() {
	echo " !     $*" >&2
	exit 1
}

# read_package: sets the array fact to what this buildpack wants to know of package.json; jq is started once, as that takes time.
# Values are escaped like those of jq's @tsv.
read_package() {
	local lines name value
	lines=$(jq --raw-output --from-file "$CNB_BUILDPACK_DIR/lib/facts.jq" package.json) || fail "package.json cannot be read: see above."
	declare -gA fact=()
	while IFS=$'\t' read -r name value; do
		fact[$name]=$value
	done <<<"$lines"
}

# has_script NAME: whether package.json has such a script.
has_script() { [[ -n ${fact[script $1]:-} ]]; }

# layer NAME TYPES [KEY]: writes the layer's description.
layer() {
	printf '[types]\n%s\n' "$2" >"$layers/$1.toml"
	[[ -z ${3:-} ]] || printf '\n[metadata]\nkey = "%s"\n' "$3" >>"$layers/$1.toml"
}

# layer_has NAME KEY: whether the layer of the last build was made with this key.
layer_has() { grep -qsE "^ *key = \"$2\"\$" "$layers/$1.toml"; }

# hash: of the standard input.
hash() { sha256sum | cut -d' ' -f1; }
