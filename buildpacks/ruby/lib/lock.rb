# lock.rb plan OUT: reads the Gemfile and the lock file of the app in the current directory, without installing
# anything, and writes to the directory OUT
#
#   key    a hash of all that decides what gets installed
#   abi    the version of Ruby that compiled gems are for, as in their paths
#   gems   the names of the locked gems, one a line
#   notes  lines for people
#
# lock.rb sbom GEMS: prints the locked gems that are installed below the directory GEMS as a CycloneDX document.
#
# A text for the user and exit status 3 say that the app asks for what cannot be had.
require "digest"
require "json"

LAYOUT = "1" # of the layer; another number makes every app install anew
ABI = RbConfig::CONFIG["ruby_version"]
MINOR = RUBY_VERSION[/\A\d+\.\d+/]

Fault = Class.new(StandardError)
Locked = Struct.new(:name, :version, :section)

# The gems of the lock file. https://bundler.io/man/bundle-lock.1.html; its form is that of Bundler::LockfileParser,
# which takes longer to load than to read it here.
def locked
  section = nil
  File.foreach("Gemfile.lock", chomp: true, encoding: "UTF-8").filter_map do |line|
    section = line if line.match?(/\A[A-Z]/)
    match = /\A {4}(\S+) \(([^)]+)\)/.match(line)
    Locked.new(match[1], match[2], section) if match
  end
end

# What the Gemfile's line "ruby" asks for, with the file that says it. Other forms of the line are left to Bundler.
def gemfile_wish
  line = File.read("Gemfile", encoding: "UTF-8").scrub[/^\s*ruby[ (]+(["'].*)$/, 1] or return []
  line.sub(/,\s*:?\w+(:\s|\s*=>).*/, "").sub(/#.*/, "").scan(/["']([^"']+)["']/).flatten
end

def no_such_ruby(file, wish, how)
  Fault.new("#{file} asks for Ruby #{wish}; this builder has Ruby #{RUBY_VERSION}, of Debian 12.\n" \
            "Either #{how}, or use a builder that has it: deis config:set DEIS_BUILDER=IMAGE")
end

# Checks the app's wishes against the interpreter, which is Debian's, and returns lines to tell.
def check_ruby
  wish = gemfile_wish
  unless Gem::Requirement.new(wish).satisfied_by?(Gem::Version.new(RUBY_VERSION))
    raise no_such_ruby("Gemfile", wish.join(", "), %(write ruby "~> #{MINOR}.0" in the Gemfile and lock again))
  end
  return [] unless wish.empty? && File.file?(".ruby-version")

  wish = File.read(".ruby-version").strip.delete_prefix("ruby-")
  raise no_such_ruby(".ruby-version", wish, "write #{MINOR} in .ruby-version") unless "#{wish}.".start_with?("#{MINOR}.")
  wish.count(".") < 2 || wish == RUBY_VERSION ? [] : [".ruby-version says #{wish}: Ruby #{RUBY_VERSION} is used"]
rescue Gem::Requirement::BadRequirementError => e
  raise Fault, "Gemfile: #{e.message}"
end

def key
  digest = Digest::SHA256.new << "#{LAYOUT} #{ABI} #{RUBY_PLATFORM} #{ENV["BUNDLE_WITHOUT"]}"
  ["Gemfile", "Gemfile.lock", *Dir.glob("vendor/cache/**/*").sort].each do |path|
    digest << "\n#{path} #{File.size(path)}\n" << File.binread(path) if File.file?(path)
  end
  digest.hexdigest
end

def plan(out)
  raise Fault, "Gemfile.lock is missing: run 'bundle lock' and commit it" unless File.file?("Gemfile.lock")
  notes = ["Using Ruby #{RUBY_VERSION}, of Debian", *check_ruby]
  File.write("#{out}/notes", notes.map { |note| "#{note}\n" }.join)
  File.write("#{out}/gems", locked.map { |gem| "#{gem.name}\n" }.join)
  File.write("#{out}/abi", ABI)
  File.write("#{out}/key", key)
end

def sbom(gems)
  installed = locked.select do |gem|
    gem.section != "GEM" || File.file?("#{gems}/ruby/#{ABI}/specifications/#{gem.name}-#{gem.version}.gemspec")
  end
  components = installed.sort_by { |gem| [gem.name, gem.version] }.map do |gem|
    version, platform = gem.version.split("-", 2)
    purl = "pkg:gem/#{gem.name}@#{version}#{"?platform=#{platform}" if platform}"
    { "type" => "library", "bom-ref" => purl, "name" => gem.name, "version" => version, "purl" => purl }
  end
  JSON.generate("bomFormat" => "CycloneDX", "specVersion" => "1.4", "version" => 1, "components" => components)
end

begin
  case ARGV
  in ["plan", out] then plan(out)
  in ["sbom", gems] then puts sbom(gems)
  end
rescue Fault => e
  warn e.message.gsub(/^/, " !     ")
  exit 3
end
