# shellcheck shell=bash disable=SC2154 # bin/build sets the variables
# install.sh: dependencies. Where node_modules depends on the lock file alone, it is the layer "modules", installed without development
# dependencies and linked into the app: an unchanged lock file then costs nothing. Where scripts of the app
# take part (a build script, postinstall, workspaces), node_modules is a directory of the app as it is for developers.

# is_plain: whether node_modules depends on package.json's dependencies and the lock file alone, and only the launch needs it.
is_plain() {
	! is_helper && is_repeatable && [[ -z $(build_script) ]] && ! has_script heroku-prebuild && ! has_script heroku-cleanup
}

# is_helper: whether the buildpack of another language needs Node.js for its build; its bin/detect has said so.
is_helper() { grep -qs '^ *build = true' "$CNB_BP_PLAN_PATH"; }

# is_workspace: whether packages in directories of the app are installed too.
is_workspace() { [[ ${fact[workspaces]} != 0 || -f pnpm-workspace.yaml ]]; }

# is_repeatable: whether an installation can be kept for the next build: no scripts of the app run in it and no directories
# of the app become part of it. What pnpm-workspace.yaml and .pnpmfile.cjs do is pnpm's to know.
is_repeatable() {
	local script
	[[ -n $lock && ${fact[local dependencies]} == 0 && ! -f .pnpmfile.cjs && ! -f binding.gyp ]] || return 1
	! is_berry && ! is_workspace || return 1
	for script in preinstall install postinstall prepublish preprepare prepare postprepare; do
		! has_script "$script" || return 1
	done
}

# is_berry: whether the manager is yarn 2 or later.
is_berry() { [[ $manager == yarn && $manager_package == @yarnpkg/cli-dist ]]; }

# build_script: the name of the script that builds the app.
build_script() {
	local name
	for name in heroku-postbuild build; do
		if has_script "$name"; then
			echo "$name"
			return
		fi
	done
}

# production_only: whether development dependencies are left out of the image.
production_only() {
	[[ ${NODE_ENV:-production} == production && ${NPM_CONFIG_PRODUCTION:-true} != false && ${YARN_PRODUCTION:-true} != false &&
		${PNPM_SKIP_PRUNING:-false} != true && ${YARN2_SKIP_PRUNING:-false} != true ]]
}

# modules_key: a hash of all that plain dependencies depend on.
modules_key() {
	{
		echo "$tools_key $app"
		! production_only || echo production
		echo "${fact[requirements]}"
		cat "$lock" .npmrc .yarnrc 2>/dev/null || true
	} | hash
}

# manager_settings: exports the package manager's settings: caches in the layer "downloads", and nothing but the work.
manager_settings() {
	local cache=$layers/downloads
	export CI=${CI:-true} npm_config_cache=$cache/npm npm_config_update_notifier=false
	case $manager_package in
	npm) export npm_config_audit=false npm_config_fund=false npm_config_logs_max=0 npm_config_progress=false ;;
	pnpm) export npm_config_store_dir=$cache/pnpm npm_config_manage_package_manager_versions=false ;;
	yarn) export YARN_CACHE_FOLDER=$cache/yarn ;;
	*) export YARN_GLOBAL_FOLDER=$cache/yarn YARN_ENABLE_TELEMETRY=0 YARN_IGNORE_PATH=1 ;;
	esac
}

# install WHAT: installs from the lock file into the current directory: "all" dependencies, or those for "production".
install() {
	case $manager in
	npm) install_npm "$1" ;;
	pnpm) install_pnpm "$1" ;;
	yarn) install_yarn "$1" ;;
	esac || fail "Dependencies cannot be installed: see above." \
		"${lock:+If $lock does not fit package.json, run \"$manager install\" and commit it.}" \
		"$(is_berry && echo "Name the version of yarn that wrote it in package.json, as packageManager.")"
}

install_npm() {
	local only=(--omit=dev)
	if [[ $1 == all ]]; then only=(--include=dev); fi
	if [[ -n $lock ]]; then
		npm ci "${only[@]}"
	else
		npm install --no-package-lock "${only[@]}"
	fi
}

install_pnpm() {
	local only=(--prod)
	if [[ $1 == all ]]; then only=(--prod=false); fi
	pnpm install "${only[@]}" --reporter=append-only "$([[ -n $lock ]] && echo --frozen-lockfile || echo --no-frozen-lockfile)"
}

install_yarn() {
	if is_berry; then
		yarn install "$([[ -n $lock ]] && echo --immutable || echo --no-immutable)"
	else
		yarn install --non-interactive --no-progress ${lock:+--frozen-lockfile} --production="$([[ $1 == all ]] && echo false || echo true)"
	fi
}

# tidy DIR: removes what package managers note about the time and place of the installation.
tidy() {
	rm -f "$1"/.pnpm-workspace-state*.json "$1/.yarn-integrity"
	[[ ! -f $1/.modules.yaml ]] || sed -i -E '/"?(prunedAt|storeDir)"?:/d' "$1/.modules.yaml"
}

# use_plain_modules: makes the layer "modules", unless the last image's is still right, and links it into the app.
use_plain_modules() {
	local key dir=$layers/modules list=$layers/downloads/modules.json file
	key=$(modules_key)
	if layer_has modules "$key" && [[ -f $list ]]; then
		say "Using the dependencies of the last build: $lock is unchanged"
	else
		make_toolchain
		say "Installing dependencies from $lock"
		rm -rf "$dir"
		mkdir -p "$dir"
		for file in package.json "$lock" .npmrc .yarnrc; do
			[[ ! -f $file ]] || cp "$file" "$dir/"
		done
		(cd "$dir" && install "$(production_only && echo production || echo all)")
		find "$dir" -mindepth 1 -maxdepth 1 ! -name node_modules -exec rm -rf {} +
		mkdir -p "$dir/node_modules"
		tidy "$dir/node_modules"
		list_modules "$dir/node_modules" >"$list"
	fi
	layer modules 'launch = true' "$key"
	rm -rf node_modules
	ln -s "$dir/node_modules" node_modules
}

# use_own_modules: installs into the app, runs its scripts, removes development dependencies.
use_own_modules() {
	local script
	make_toolchain
	script=$(build_script)
	restore_directories
	run_script heroku-prebuild
	install_or_restore
	if [[ -n $script ]]; then run_script "$script"; fi
	save_directories
	prune
	run_script heroku-cleanup
	list_modules . >"$layers/downloads/modules.json"
	[[ -d node_modules ]] || return 0
	tidy node_modules
	# A layer of its own, so that a change of sources does not store node_modules again.
	printf '[[slices]]\npaths = ["node_modules"]\n\n' >>"$layers/launch.toml"
}

# install_or_restore: all dependencies, copied from the layer "installed" where nothing has changed.
install_or_restore() {
	local key kept=$layers/installed
	if ! is_repeatable; then
		rm -rf "$kept" "$kept.toml"
		[[ -n $lock ]] || warn "There is no lock file: versions of dependencies may change from one build to the next."
		say "Installing dependencies${lock:+ from $lock}"
		choose_linker
		install all
		return
	fi
	key=$(modules_key)
	rm -rf node_modules
	if layer_has installed "$key" && [[ -d $kept/node_modules ]]; then
		say "Restoring dependencies of the last build: $lock is unchanged"
		cp -a --reflink=auto "$kept/node_modules" .
	else
		rm -rf "$kept" "$kept.toml"
		say "Installing dependencies from $lock"
		install all
		mkdir -p "$kept" node_modules
		cp -a --reflink=auto node_modules "$kept/"
	fi
	layer installed 'cache = true' "$key"
}

# choose_linker: yarn's Plug'n'Play loads packages from its cache, so that has to be in the app.
choose_linker() {
	local global=false
	is_berry || return 0
	if [[ $(yarn config get nodeLinker 2>/dev/null) != pnp ]]; then global=true; fi
	export YARN_ENABLE_GLOBAL_CACHE=$global
}

# run_script NAME: runs a script of package.json, where there is one.
run_script() {
	has_script "$1" || return 0
	say "Running the script \"$1\""
	NODE_ENV=${NODE_ENV:-production} "$manager" run "$1" || fail "The script \"$1\" of package.json failed: see above."
}

# prune: removes development dependencies, unless the other language's build may need them.
prune() {
	! is_helper && production_only && [[ -d node_modules || -f .pnp.cjs ]] || return 0
	[[ ${fact[development dependencies]} != 0 ]] || return 0
	say "Removing development dependencies"
	case $manager in
	npm) npm prune --omit=dev --ignore-scripts --no-package-lock ;;
	pnpm) prune_pnpm ;;
	yarn) prune_yarn ;;
	esac >/dev/null || fail "Development dependencies cannot be removed: see above."
}

prune_pnpm() {
	if [[ -f pnpm-workspace.yaml ]] && grep -q '^packages:' pnpm-workspace.yaml; then
		warn "pnpm cannot do that in workspaces: they stay." >&2
		return
	fi
	pnpm prune --prod --ignore-scripts
}

prune_yarn() {
	if ! is_berry; then
		yarn install --production --ignore-scripts --prefer-offline --non-interactive --no-progress ${lock:+--frozen-lockfile}
	elif [[ $manager_version == [23].* ]]; then
		warn "yarn $manager_version cannot do that: they stay." >&2
	else
		yarn workspaces focus --all --production
	fi
}

# cached_directories: the directories in the app that are kept between builds: those that package.json names, and the
# packages of Plug'n'Play.
cached_directories() {
	printf '%s\n' "${!fact[@]}" | sed -n 's/^cache //p' | sort
	! is_berry || echo .yarn/cache
}

restore_directories() {
	local dir
	while IFS= read -r dir; do
		[[ -d $layers/downloads/directories/$dir && ! -e $dir ]] || continue
		say "Restoring $dir"
		mkdir -p "$(dirname "$dir")"
		cp -a --reflink=auto "$layers/downloads/directories/$dir" "$dir"
	done < <(cached_directories)
}

save_directories() {
	local dir kept=$layers/downloads/directories
	rm -rf "$kept"
	while IFS= read -r dir; do
		[[ -d $dir ]] || continue
		mkdir -p "$kept/$(dirname "$dir")"
		cp -a --reflink=auto "$dir" "$kept/$dir"
	done < <(cached_directories)
}
