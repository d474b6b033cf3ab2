# shellcheck shell=bash disable=SC2154 # bin/build sets the variables
# sbom.sh: what is in the image, as CycloneDX.

# list_modules DIRECTORY: the packages that are installed in it, as an array of components. Workspaces have more than one node_modules.
# A file that is no JSON, maybe one for tests, makes jq leave out those after it: then they are read one by one.
list_modules() {
	# shellcheck disable=SC2016 # the inner shell's
	local each='jq -r "$0" "$@" 2>/dev/null || for f; do jq -r "$0" "$f" 2>/dev/null || :; done'
	local package='select((.name? | type) == "string" and (.version? | type) == "string") | "\(.name)\t\(.version)"'
	if [[ -f .pnp.cjs ]]; then
		sed -nE 's/^ +resolution: "(@?[^@]+)@npm:([^"]+)"$/\1\t\2/p' yarn.lock
	elif [[ -d $1 ]]; then
		find "$1" -regex '\(.*/\)?node_modules/\(@[^/]*/\)?[^@/.][^/]*/package\.json' -type f -print0 | sort -z |
			xargs -0 --no-run-if-empty sh -c "$each" "$package"
	fi | jq --raw-input --null-input --compact-output '
		[inputs | split("\t") | {name: .[0], version: .[1]}
			| "pkg:npm/\(.name | sub("^@"; "%40"))@\(.version | gsub("[+]"; "%2B"))" as $purl
			| {type: "library", "bom-ref": $purl, name, version, purl: $purl}] | unique_by(.purl)'
}

# write_sbom: the runtime and the packages.
write_sbom() {
	local modules=$layers/downloads/modules.json
	[[ -f $modules ]] || echo '[]' >"$modules"
	jq --compact-output --arg node "$node_version" --arg npm "$npm_version" '
		def component($name; $version): "pkg:npm/\($name)@\($version)" as $purl
			| {type: "library", "bom-ref": $purl, name: $name, version: $version, purl: $purl};
		{bomFormat: "CycloneDX", specVersion: "1.4", version: 1,
			components: (. + [component("node"; $node), component("npm"; $npm)] | unique_by(.purl))}' \
		"$modules" >"$layers/launch.sbom.cdx.json"
}
