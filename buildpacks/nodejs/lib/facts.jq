# facts.jq: package.json as lines "name <tab> value".
def object: if type == "object" then . else {} end;
def text: if type == "string" then . else "" end;

if type != "object" then error("package.json is no object") else . end
| (.scripts | object) as $scripts
| ((.packageManager | text) / "@") as $manager
| [.dependencies, .devDependencies, .optionalDependencies | object] as $dependencies
| (["node", "npm", "yarn", "pnpm"][] as $name | ["engine \($name)", (.engines | object | .[$name] | text)]),
  ["manager", $manager[0] // ""],
  ["manager version", (($manager[1] // "") / "+")[0] // ""],
  ($scripts | to_entries[] | ["script \(.key)", (.value | text)]),
  ["dependencies", ($dependencies | map(length) | add)],
  ["development dependencies", ($dependencies[1] | length)],
  ["workspaces", (.workspaces // [] | length)],
  # Directories and patches of the app that become part of node_modules, and packages that make a part of themselves from
  # the app's files: Prisma's client from its schema.
  ["local dependencies", ([$dependencies[][] | text | select(test("^(file|link|portal|workspace|patch):|^([.]|/|~/)"))] | length)
    + ([$dependencies[] | has("@prisma/client") | select(.)] | length)
    + (.pnpm | object | .patchedDependencies | object | length)],
  # What an installation takes from package.json besides the lock file.
  ["requirements", ([.dependencies, .devDependencies, .optionalDependencies, .peerDependencies, .bundleDependencies,
    .bundledDependencies, .overrides, .resolutions, .pnpm] | tojson)],
  ((.cacheDirectories // .cache_directories // [])[] | text
    | select(test("(^|/)\\.\\.(/|$)|^/|^$|node_modules/?$") | not) | ["cache \(.)", "kept"])
| @tsv
