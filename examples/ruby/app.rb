# A small web app: a page from a gem in vendor/, served by nothing but Ruby's own library. Each connection is a thread
# and has one request. At TERM the app finishes what it has begun, then ends.
require "socket"
require "greeting"

$stdout.sync = true

def answer(path)
  case path
  when "/" then [200, "OK", "#{Greeting.for(ENV.fetch("POWERED_BY", "Deis"))}\n"]
  when "/healthz" then [200, "OK", "OK\n"]
  else [404, "Not Found", "not found\n"]
  end
end

def serve(client)
  method, path, = client.gets("\n", 8192)&.split
  return unless path
  nil until client.gets("\n", 8192)&.strip.to_s.empty?
  status, reason, body = answer(path)
  client.write "HTTP/1.1 #{status} #{reason}\r\nContent-Type: text/plain; charset=utf-8\r\n" \
               "Content-Length: #{body.bytesize}\r\nConnection: close\r\n\r\n#{body unless method == "HEAD"}"
  puts "#{method} #{path} #{status}" unless path == "/healthz"
rescue SystemCallError, IOError
  # The client has gone.
ensure
  client.close
end

port = ENV.fetch("PORT", "5000")
server = TCPServer.new("0.0.0.0", port)
server.listen(128)
stop, stopping = IO.pipe
trap("TERM") { stopping.close }
puts "listening on port #{port}"
threads = ThreadGroup.new
until IO.select([server, stop])[0].include?(stop)
  client = server.accept_nonblock(exception: false)
  threads.add(Thread.new { serve(client) }) unless client == :wait_readable
end
threads.list.each { |thread| thread.join(8) }
puts "ended"
