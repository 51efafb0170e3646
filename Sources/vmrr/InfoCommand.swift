import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

struct InfoCommand: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "info", abstract: "Says what a trace holds.")

    @OptionGroup var trace: TraceArgument

    @Flag(help: "Print JSON.")
    var json = false

    func run() throws {
        try reporting {
            let path = try trace.path()
            let reader = try TraceReader(path: path)
            let description = try reader.description()
            let ending = try reader.meta(TraceEnding.key, as: TraceEnding.self)
            let size = (try? FileManager.default.attributesOfItem(atPath: path)[.size] as? UInt64) ?? 0
            let interrupts = try ending?.interrupts ?? Self.count(reader)
            let facts = Facts(reader: reader, description: description, ending: ending,
                              parent: try reader.meta(TraceParent.key, as: TraceParent.self), fileBytes: size,
                              interrupts: interrupts,
                              spacing: try reader.meta(CheckpointSpacing.key, as: CheckpointSpacing.self),
                              saved: try reader.meta(TraceSaved.key, as: TraceSaved.self),
                              marks: ending?.marks == 0 ? [] : try reader.marks())
            write(json ? facts.json.text() + "\n" : facts.text(path: path))
            return .done
        }
    }

    /// The interrupts of a recording that was killed before it could count them.
    private static func count(_ reader: TraceReader) throws -> InterruptCounts {
        var counts = InterruptCounts()
        var cursor = reader.cursor()
        while let event = try cursor.next() { counts.count(event.identity.kind) }
        return counts
    }

    private struct Facts {
        var reader: TraceReader
        var description: TraceDescription
        var ending: TraceEnding?
        var parent: TraceParent?
        var fileBytes: UInt64
        var interrupts: InterruptCounts
        var spacing: CheckpointSpacing?
        var saved: TraceSaved?
        var marks: [TraceMark]

        var ended: String { ending?.ended ?? (saved == nil ? "killed" : "saved") }
        var exits: UInt64 { reader.lastExit.rawValue - reader.firstExit.rawValue }
        var rawBytes: UInt64 { reader.chunks.reduce(0) { $0 + UInt64($1.rawBytes) } }
        var bytesPerEvent: Double { Double(fileBytes) / Double(max(1, reader.events)) }

        var json: JSON {
            [
                "format": JSON(Int(reader.version)), "vmrr_version": .string(description.vmrrVersion),
                "guest": .string(description.guest), "command_line": .array(description.commandLine.map { .string($0) }),
                "created": JSON(description.created), "engine": .string(description.engine),
                "host_cpu": .string(description.hostCPU), "host_kernel": .string(description.hostKernel),
                "cpu_model": .string(description.cpuModel.name), "memory_bytes": JSON(description.memoryBytes),
                "timestamps": .string(description.timestamps.rawValue),
                "timestamp_sites": JSON(description.sites.count(of: .timestamps)),
                "cpuid_sites": JSON(description.sites.count(of: .identification)),
                "unrecordable": .array(description.unrecordable.map { .string($0) }),
                "timing_seed": JSON(description.timingSeed),
                "parent": parent.map {
                    ["name": .string($0.name), "identity": .string($0.identity), "exit": JSON($0.exit.rawValue)]
                } ?? .null,
                "identity": .string(reader.identity), "first_exit": JSON(reader.firstExit.rawValue),
                "exits": JSON(exits), "events": JSON(reader.events), "interrupts": interruptsJSON(interrupts),
                "latency_us": ending.map { latencyJSON($0.latency) } ?? .null,
                "latency_us_by_position": ending?.latencies.map {
                    [
                        "at_exit": latencyJSON($0.atExit), "at_window": latencyJSON($0.atWindow),
                        "between_exits": latencyJSON($0.betweenExits),
                    ]
                } ?? .null,
                "marks": .array(marks.map {
                    ["name": .string($0.name), "exit": JSON($0.exit.rawValue), "seconds": .number($0.time.seconds)]
                }),
                "raw_bytes": JSON(rawBytes), "file_bytes": JSON(fileBytes), "bytes_per_event": .number(bytesPerEvent),
                "chunks": JSON(reader.chunks.count), "checkpoints": JSON(reader.checkpoints.count),
                "checkpoint_bytes": JSON(reader.checkpoints.reduce(0) { $0 + $1.bytesStored }),
                "checkpoint_spacing": JSON(spacing?.policy), "checkpoints_spread_to_ns": JSON(spacing?.spreadTo?.rawValue),
                "oldest_checkpoint": JSON(reader.checkpoints.first?.exit.rawValue),
                "ended": .string(ended), "guest_status": JSON(ending?.guestStatus),
                "guest_failed": ending.map { .bool($0.failed) } ?? .null, "detail": JSON(ending?.detail),
                "state_digest": JSON(ending?.digests?.state.description),
                "memory_digest": JSON(ending?.digests?.memory.description),
                "assisted_instructions": JSON(ending?.assistedInstructions),
                "wall_seconds": ending.map { .number($0.wall.seconds) } ?? .null,
            ]
        }

        private var checkpoints: String {
            let list = reader.checkpoints
            var text = "\(list.count), \(humanBytes(UInt64(list.reduce(0) { $0 + $1.bytesStored })))"
            if let spacing { text += ", spacing \(spacing.policy)" }
            if let widest = spacing?.spreadTo {
                text += ", spread to \(humanSeconds(widest.seconds)) at most, since they took more than 5 % of the time"
            }
            if let first = list.first, first.exit > reader.firstExit { text += "; replay begins at exit \(first.exit.rawValue)" }
            return text
        }

        private var sites: String {
            let parts = [(TrappedInstructions.timestamps, "sites"), (.identification, "of CPUID")]
                .map { (description.sites.count(of: $0), $1) }.filter { $0.0 > 0 }.map { "\($0.0) \($0.1)" }
            return parts.isEmpty ? "" : " (\(parts.joined(separator: ", ")))"
        }

        func text(path: String) -> String {
            var lines: [(String, String)] = [
                ("trace", "\(path), format \(reader.version), \(humanBytes(fileBytes))"),
                ("guest", "\(description.guest), \(humanBytes(description.memoryBytes)) of memory, "
                    + "\(description.cpuModel.name), timestamps \(description.timestamps.rawValue)"
                    + sites),
                ("recorded", "with vmrr \(description.vmrrVersion) under \(description.engine) on "
                    + "\(description.hostCPU), Linux \(description.hostKernel)"),
                ("events", "\(reader.events), of which \(exits) exits; "
                    + "\((bytesPerEvent * 100).rounded() / 100) bytes an event on disk"),
                ("interrupts", "\(interrupts.total): \(interrupts.atExit) at exits, \(interrupts.atWindow) at windows, "
                    + "\(interrupts.atAnchor) between exits; \(interrupts.nmi) of them NMIs"),
            ]
            if let parent {
                lines.insert(("continues", "\(parent.name) from exit \(parent.exit.rawValue) on"), at: 3)
            }
            if !reader.checkpoints.isEmpty { lines.append(("checkpoints", checkpoints)) }
            if let latency = ending?.latency, interrupts.total > 0 {
                func us(_ value: Nanoseconds) -> String { "\(value.rawValue / 1000) µs" }
                lines.append(("latency", "interrupts waited \(us(latency.p50)) (p50), \(us(latency.p99)) (p99), "
                    + "\(us(latency.worst)) (worst) for their place"))
                let byPosition = ending?.latencies.map {
                    [
                        ("at exits", interrupts.atExit, $0.atExit), ("at windows", interrupts.atWindow, $0.atWindow),
                        ("between exits", interrupts.atAnchor, $0.betweenExits),
                    ].filter { $0.1 > 0 }
                } ?? []
                if byPosition.count > 1 {
                    lines.append(("", byPosition.map { name, _, latency in
                        "\(name) \(us(latency.p50)), \(us(latency.p99)), \(us(latency.worst))"
                    }.joined(separator: "; ")))
                }
            }
            for mark in marks {
                lines.append(("mark", "\(mark.name): after exit \(mark.exit.rawValue), \(humanSeconds(mark.time.seconds))"))
            }
            if let count = ending?.assistedInstructions, count > 0 {
                lines.append(("assisted", "\(count) instructions that KVM could not emulate were executed by the soft engine"))
            }
            for gap in description.unrecordable { lines.append(("not recorded", gap)) }
            if let ending {
                lines.append(("ended", ending.ended + (ending.guestStatus.map { " \($0)" } ?? "")
                    + " after \(humanSeconds(ending.wall.seconds))" + (ending.detail.map { ": \($0)" } ?? "")))
            } else if let saved {
                lines.append(("ended", "saved at exit \(saved.exit.rawValue), while the guest ran on"))
            } else {
                lines.append(("ended", "killed: the trace holds all that was committed"))
            }
            return lines.map { $0.padding(toLength: 14, withPad: " ", startingAt: 0) + $1 + "\n" }.joined()
        }
    }
}
