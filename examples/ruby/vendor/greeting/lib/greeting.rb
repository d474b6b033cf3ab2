# A line to greet who comes by.
module Greeting
  def self.for(who) = "Powered by #{who}"
end
