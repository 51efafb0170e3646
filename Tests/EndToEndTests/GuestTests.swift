import Foundation
import Testing

extension EndToEnd {
    /// Point 1 of "It holds when": every built-in guest replays to the digests of its recording.
    @Suite(.needsKVM) struct Guests {
        /// Command lines that shorten the guests which take longer than about half a second.
        static let short = [
            "ticker": "ticks=200", "spin": "ticks=300", "lost-update": "ticks=200", "clocks": "rounds=1000",
            "strings": "rounds=1", "churn": "rounds=20", "user": "rounds=200", "smc": "rounds=500",
            "nested-irq": "ticks=150", "nmi": "ipis=50 ticks=60", "fpu": "ticks=150", "paging": "rounds=60",
        ]

        static let names: [String] = {
            let list = try? Child.run([Vmrr.binary, "guests", "--json"], in: "/", deadline: 20).json.array
            return list?.compactMap { $0["name"].string } ?? []
        }()

        static func guest(_ name: String) throws -> Guest {
            name == "echo" ? try .echo() : .builtIn(name, Sizes.isLong ? "" : short[name] ?? "")
        }

        @Test func areAllListed() {
            let required: Set = [
                "hello", "echo", "ticker", "spin", "lost-update", "clocks", "strings", "churn", "user", "smc",
                "nested-irq", "nmi", "triple",
            ]
            #expect(required.isSubset(of: Self.names))
            #expect(Set(Self.short.keys).isSubset(of: Self.names))
        }

        @Test(arguments: names) func replays(_ name: String) throws {
            let trace = try record(try Self.guest(name))
            switch name {
            case "triple": #expect(trace.status == 10)
            case "lost-update": #expect([0, 10].contains(trace.status))
            default: #expect(trace.status == 0, "\(trace.output)")
            }
            try replaysTheSame(trace, times: Sizes.replays)
        }

        @Test(arguments: ["spin", "lost-update", "nested-irq"])
        func takesInterruptsBetweenExits(_ name: String) throws {
            let trace = try record(try Self.guest(name))
            let interrupts = try trace.info["interrupts"]
            let (total, between) = (try #require(interrupts["total"].int), try #require(interrupts["between_exits"].int))
            if Sizes.isLong { #expect(total >= 1000, "\(interrupts)") }
            #expect(total > 100)
            if KVM.canStopBetweenExits { #expect(between * 4 > total, "\(interrupts)") }
            #expect(trace.report["interrupts"] == interrupts)
        }
    }

    /// Point 2: the bug that shows in one run of several is caught, and then shows in every replay.
    @Suite(.needsKVM) struct UntilFailure {
        @Test func findsTheLostUpdateAndKeepsIt() throws {
            let guest = Guest.builtIn("lost-update", Sizes.isLong ? "" : "ticks=300 work=3000")
            let trace = try record(
                guest, ["--until-failure", "--max-runs", "60", "--vary-timing", "\(Sizes.seed)"],
                deadline: Sizes.isLong ? 300 : 60)
            #expect(trace.status == 10, "\(trace.output)")
            #expect(trace.report["guest_status"].int ?? 0 != 0)
            #expect(trace.report["runs"].int ?? 0 >= 1)
            // Each replay: status 10, the same exit, the same digests.
            try replaysTheSame(trace, times: Sizes.replays, status: 10)
        }

        @Test func givesUpAfterSoManyRuns() throws {
            let trace = try record(.builtIn("hello"), ["--until-failure", "--max-runs", "3"])
            #expect(trace.status == 0 && trace.report["runs"].int == 3, "\(trace.output)")
            try replaysTheSame(trace)
        }
    }

    /// Point 4: what an event costs on disk.
    @Suite(.needsKVM) struct Sizing {
        @Test func aPortReadCostsAtMostOneAndAHalfBytes() throws {
            let image = try Folder.current.file("ports.bin", PortLoop.image(rounds: 33_334))
            let trace = try record(.flat(image))
            #expect(trace.exits == 100_003)
            #expect(try bytesPerEvent(trace) <= 1.5)
            try replaysTheSame(trace)
        }

        @Test func aClockReadCostsAtMostFourBytes() throws {
            let trace = try record(.builtIn("clocks", "rounds=\(Sizes.isLong ? 20_000 : 4_000)"))
            #expect(try bytesPerEvent(trace) <= 4)
        }

        private func bytesPerEvent(_ trace: Recorded) throws -> Double {
            let info = try trace.info
            let (bytes, events) = (try #require(info["file_bytes"].double), try #require(info["events"].double))
            #expect(bytes == Double(try FileManager.default.attributesOfItem(atPath: trace.path)[.size] as? Int ?? 0))
            #expect(abs((info["bytes_per_event"].double ?? 0) - bytes / events) < 0.001)
            print("\(trace.path): \(bytes / events) bytes an event, \(Int(events)) events")
            return bytes / events
        }
    }
}
