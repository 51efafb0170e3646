import Testing

extension EndToEnd {
    /// What a recording says of where its interrupts entered, and how long they waited for that.
    @Suite(.needsKVM) struct Placement {
        @Test(arguments: ["ticker", "spin", "nested-irq"]) func eachKindOfPositionIsCountedAndMeasured(_ name: String) throws {
            let trace = try record(.builtIn(name, EndToEnd.Guests.short[name] ?? ""))
            let info = try trace.info
            let (counts, latencies) = (info["interrupts"], info["latency_us_by_position"])
            let kinds = ["at_exit", "at_window", "between_exits"]
            let total = try #require(counts["total"].int)
            #expect(total > 0 && kinds.compactMap { counts[$0].int }.reduce(0, +) == total, "\(info)")
            let worst = try #require(info["latency_us"]["max"].double)
            for kind in kinds {
                let latency = latencies[kind]
                let steps = [latency["p50"].double, latency["p99"].double, latency["max"].double].compactMap { $0 }
                #expect(steps.count == 3 && steps == steps.sorted(), "\(kind): \(info)")
                #expect((steps.last ?? 0) <= worst, "\(kind): \(info)")
                #expect((counts[kind].int ?? 0) > 0 || steps.last == 0, "\(kind): \(info)")
            }
            #expect(kinds.compactMap { latencies[$0]["max"].double }.max() == worst)
            let text = try Vmrr.run(["info", trace.path]).text
            #expect(text.contains("\(total): ") && text.contains("(p99)"))
        }
    }
}
