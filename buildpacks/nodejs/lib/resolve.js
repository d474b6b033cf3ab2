// resolve.js INDEX RANGE PREFERRED: prints the version of a package that a range asks for: the highest one that is also
// in the preferred range, else the highest. INDEX is a file of lib/versions.sh. Status 2: RANGE is no range; 1: no version.
const fs = require("fs");
const semver = require("/usr/share/nodejs/semver"); // of the build image's npm

const [index, range, preferred] = process.argv.slice(2);
if (semver.validRange(range) === null) process.exit(2);
const versions = Object.keys(JSON.parse(fs.readFileSync(index, "utf8")));
const fitting = versions.filter((version) => semver.satisfies(version, range));
const found =
	semver.maxSatisfying(fitting, preferred || range) || semver.maxSatisfying(fitting, range);
if (!found) process.exit(1);
console.log(found);
