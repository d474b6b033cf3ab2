Gem::Specification.new do |gem|
  gem.name = "greeting"
  gem.version = "1.0"
  gem.summary = "Greets who comes by"
  gem.authors = ["Deis"]
  gem.files = ["lib/greeting.rb"]
end
