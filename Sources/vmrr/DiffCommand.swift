import ArgumentParser
import Foundation
import Replay
import Trace
import VMCore

struct DiffCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "diff", abstract: "Shows how two states differ: registers, devices, memory.",
        discussion: "A point is TRACE@N, TRACE@N+K, or TRACE alone for its end; both may be of the same trace.")

    @Argument(help: ArgumentHelp("The first point.", valueName: "a"))
    var a: PointArgument

    @Argument(help: ArgumentHelp("The second point.", valueName: "b"))
    var b: PointArgument

    @Flag(help: "Only counts, for each region of memory.")
    var stat = false

    @Option(
        help: ArgumentHelp("Memory that doesn't count: ADDR:LEN or phys:ADDR:LEN. May be repeated.", valueName: "range")
    )
    var ignore: [String] = []

    @Flag(help: "Accessed and dirty bits of page-table entries count too.")
    var strict = false

    @Option(help: ArgumentHelp("List so many runs of changed bytes.", valueName: "n"))
    var limit = 64

    @Option(
        help: ArgumentHelp("Draw the map of physical memory, a square a page, into this PNG file.", valueName: "file"))
    var image: String?

    @OptionGroup var symbols: SymbolOptions

    @OptionGroup var engine: EngineOption

    @Flag(help: "Print JSON.")
    var json = false

    func validate() throws {
        if limit < 0 { throw ValidationError("--limit takes a number from 0") }
    }

    func run() throws {
        try reporting {
            let left = try a.timeline(engine)
            let right = try b.timeline(engine)
            var options = StateDifference.Options()
            options.symbols = try symbols.table(for: left.reader)
            options.ignored = try ignore.map {
                try symbols.range($0, in: options.symbols, option: "--ignore", standard: 1)
            }
            options.masksAccessedDirty = !strict
            options.limit = limit
            var bar = ProgressBar("replaying")
            left.progress = { bar.update($0 / 2) }
            right.progress = { bar.update(0.5 + $0 / 2) }
            try watched(left, right) {
                try a.go(left)
                try b.go(right)
            }
            bar.finish()
            func side(_ point: PointArgument, _ timeline: Timeline) throws -> StateDifference.Side {
                StateDifference.Side(
                    name: "\(point.path)@\(timeline.position)", state: try timeline.state(),
                    memory: timeline.memory, platform: timeline.platform)
            }
            let difference = try StateDifference(side(a, left), side(b, right), options: options)
            if let image, !FileManager.default.createFile(atPath: image, contents: Data(difference.picture())) {
                throw UsageError("can't write \(image)")
            }
            write(
                json
                    ? difference.json.text() + "\n"
                    : difference.lines(outputStyle, statistics: stat).joined(separator: "\n") + "\n")
            return .done
        }
    }
}
