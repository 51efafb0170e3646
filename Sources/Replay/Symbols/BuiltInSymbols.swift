import Trace
import VMCore

extension TraceReader {
    /// The symbols of the built-in guest that the trace is of; none where it is of another guest, or of the image that
    /// another version of this program had.
    public func builtInSymbols() throws -> SymbolTable {
        let description = try description()
        guard let guest = BuiltInGuest.named(description.guest), !guest.symbols.isEmpty, let start = checkpoints.first
        else {
            return SymbolTable()
        }
        let image = guest.bytes
        let base = BuiltInGuest.loadAddress.rawValue
        let patched = Set(description.sites.flatMap { site in (0..<3).map { site.address.rawValue + $0 } })
        var isSame = true
        let limit = description.memory.regions.map { $0.end.rawValue / UInt64(pageSize) }.max() ?? 0
        try loadPages(start.id, pageLimit: limit) { number, content in
            let page = number * UInt64(pageSize)
            guard isSame, let content, page >= base, page < base + UInt64(image.count) else { return }
            let offset = Int(page - base)
            for (index, byte) in image[offset..<min(offset + pageSize, image.count)].enumerated()
            where content[index] != byte && !patched.contains(page + UInt64(index)) {
                isSame = false
                return
            }
        }
        return isSame
            ? SymbolTable(guest.symbols.map { Symbol(name: $0.name, address: $0.address.rawValue, size: $0.size) })
            : SymbolTable()
    }
}
