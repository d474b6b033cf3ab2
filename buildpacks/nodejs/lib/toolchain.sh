# shellcheck shell=bash disable=SC2154 # bin/build sets the variables
# toolchain.sh: Node.js and the package managers as layers. "toolchain" is for builds (with headers, for native modules), those
# of the buildpacks that follow too, and kept in the cache; "runtime" is for launch and made anew only when a version changes.

# make_toolchain: makes the layer "toolchain" unless it is there. Only needed when something is installed or run.
make_toolchain() {
	local dir=$layers/toolchain
	if ! layer_has toolchain "$tools_key" || [[ ! -x $dir/bin/node ]]; then
		rm -rf "$dir" "$layers/toolchain.toml"
		say "Fetching Node.js $node_version with npm $npm_version"
		fetch "node-linux-$arch" "$node_version" "$dir" package/bin package/include package/LICENSE
		fetch npm "$npm_version" "$dir/lib/node_modules/npm"
		ln -s ../lib/node_modules/npm/bin/npm-cli.js "$dir/bin/npm"
		ln -s ../lib/node_modules/npm/bin/npx-cli.js "$dir/bin/npx"
		chmod +x "$dir"/lib/node_modules/npm/bin/*-cli.js
		fetch_manager "$dir"
		declare_build_env "$dir/env.build"
	fi
	layer toolchain $'build = true\ncache = true' "$tools_key"
	export PATH=$dir/bin:$PATH
	# Native modules are compiled with the headers in the layer: those of nodejs.org may be out of reach. node-gyp knows both
	# names; newer npms warn of the first one, older ones have a node-gyp that does not know the second.
	if [[ $manager != npm || ${npm_version%%.*} -lt 11 ]]; then
		export npm_config_nodedir=$dir
	else
		export npm_package_config_node_gyp_nodedir=$dir
	fi
}

# declare_build_env DIR: the environment of the buildpacks that follow. Dependencies are installed: jsbundling-rails and Vite Ruby
# need not do it again.
declare_build_env() {
	mkdir -p "$1"
	printf production >"$1/NODE_ENV.default"
	printf 1 >"$1/SKIP_YARN_INSTALL.default"
	printf true >"$1/VITE_RUBY_SKIP_ASSETS_PRECOMPILE_INSTALL.default"
}

# keep_toolchain: keeps the layer for the next build although this one may not have needed it.
keep_toolchain() {
	if layer_has toolchain "$tools_key" && [[ -x $layers/toolchain/bin/node ]]; then
		layer toolchain $'build = true\ncache = true' "$tools_key"
	else
		rm -rf "$layers/toolchain" "$layers/toolchain.toml"
	fi
}

# fetch_manager DIR: yarn or pnpm.
fetch_manager() {
	[[ $manager != npm ]] || return 0
	say "Fetching $manager $manager_version"
	PATH=$1/bin:$PATH npm install --global --prefix "$1" --registry "$registry" --loglevel error \
		"$manager_package@$manager_version" >/dev/null || fail "$manager $manager_version cannot be installed: see above."
}

# make_runtime: makes the layer "runtime", unless the last image's is still right. Links within a file system take no time.
make_runtime() {
	local dir=$layers/runtime
	if ! layer_has runtime "$tools_key"; then
		make_toolchain
		rm -rf "$dir"
		mkdir -p "$dir/env.launch"
		cp -a --link "$layers/toolchain/bin" "$layers/toolchain/lib" "$dir/" 2>/dev/null ||
			cp -a "$layers/toolchain/bin" "$layers/toolchain/lib" "$dir/"
		printf production >"$dir/env.launch/NODE_ENV.default"
		printf false >"$dir/env.launch/npm_config_update_notifier.default"
		printf : >"$dir/env.launch/PATH.delim"
		printf %s "$app/node_modules/.bin" >"$dir/env.launch/PATH.append"
	fi
	layer runtime 'launch = true' "$tools_key"
}
