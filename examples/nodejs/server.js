// An example for Deis: a web process with one package from the npm registry.
const fastify = require("fastify")();

fastify.get("/", async () => `Powered by ${process.env.POWERED_BY || "Deis"}\n`);
fastify.get("/healthz", async () => "OK\n");

// At TERM requests under way finish, then the process ends.
for (const signal of ["SIGTERM", "SIGINT"]) {
	process.once(signal, async () => {
		await fastify.close();
		console.log("ended");
	});
}

const port = Number(process.env.PORT || 5000);
fastify.listen({ port, host: "::" }).then(
	() => console.log(`listening on port ${port}`),
	(err) => {
		console.error(err.message);
		process.exit(1);
	},
);
