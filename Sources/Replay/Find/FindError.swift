import VMCore

/// Why a search can't be made, or finds nothing.
public enum FindError: Error, CustomStringConvertible {
    case notMapped(AddressRange, at: String)
    case holdsAtStart(ExitNumber, String)
    case neverHolds(ExitNumber, String)
    case noRange(ExitNumber, ExitNumber)
    case command(String)

    public var description: String {
        switch self {
        case .notMapped(let range, let place):
            "\(hex(range.address)) to \(hex(range.address &+ UInt64(range.count) &- 1)) isn't all mapped at \(place)"
        case .holdsAtStart(let exit, let what): "\(what) at exit \(exit.rawValue) already: choose an earlier --from"
        case .neverHolds(let exit, let what): "\(what) at exit \(exit.rawValue), where the search ends"
        case .noRange(let from, let to): "there are no exits between \(from.rawValue) and \(to.rawValue) to search"
        case .command(let text): text
        }
    }
}
