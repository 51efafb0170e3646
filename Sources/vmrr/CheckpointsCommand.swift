import ArgumentParser
import Trace
import VMCore

struct CheckpointsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoints", abstract: "Lists the checkpoints of a trace.",
        discussion: "Each is the complete state right after an exit. The pause is how long the guest stood still for it.")

    @OptionGroup var trace: TraceArgument

    @Flag(help: "Print JSON, with the digests of each state.")
    var json = false

    func run() throws {
        try reporting {
            let checkpoints = try TraceReader(path: trace.path()).checkpoints
            write(json ? JSON.array(checkpoints.map(Self.json)).text() + "\n" : Self.table(checkpoints))
            return .done
        }
    }

    private static func table(_ checkpoints: [CheckpointInfo]) -> String {
        let heads = ["exit", "machine time", "host time", "dirty pages", "stored", "pause"]
        let rows = [heads] + checkpoints.map { checkpoint in
            [
                String(checkpoint.exit.rawValue), time(checkpoint.guest), time(checkpoint.wall),
                String(checkpoint.pagesDirtied), humanBytes(UInt64(checkpoint.bytesStored)),
                "\(checkpoint.pause.rawValue / 1000) µs",
            ]
        }
        let widths = heads.indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
        return rows.map { row in
            zip(row, widths).map { String(repeating: " ", count: $1 - $0.count) + $0 }.joined(separator: "  ") + "\n"
        }.joined()
    }

    /// Seconds with a millisecond's digits.
    private static func time(_ span: Nanoseconds) -> String {
        let fraction = String(span.rawValue / 1_000_000 % 1000)
        return "\(span.rawValue / 1_000_000_000).\(String(repeating: "0", count: 3 - fraction.count))\(fraction) s"
    }

    private static func json(_ checkpoint: CheckpointInfo) -> JSON {
        [
            "id": JSON(checkpoint.id.rawValue), "exit": JSON(checkpoint.exit.rawValue),
            "event": JSON(checkpoint.event), "parent": JSON(checkpoint.parent?.rawValue),
            "machine_ns": JSON(checkpoint.guest.rawValue), "wall_ns": JSON(checkpoint.wall.rawValue),
            "pause_ns": JSON(checkpoint.pause.rawValue), "pages_dirtied": JSON(checkpoint.pagesDirtied),
            "bytes_stored": JSON(checkpoint.bytesStored), "state_digest": JSON(checkpoint.digests.state),
            "memory_digest": JSON(checkpoint.digests.memory), "memory_digest_strict": JSON(checkpoint.digests.strictMemory),
        ]
    }
}
