import ArgumentParser
import Replay
import Trace

/// Names for addresses.
struct SymbolOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "An ELF file or System.map with the guest's symbols: addresses are printed with names, and "
                + "names can be given for addresses. May be repeated.", valueName: "file"))
    var symbols: [String] = []

    /// The symbols of the files, and of the built-in guest that the trace is of.
    func table(for reader: TraceReader) throws -> SymbolTable {
        var table = SymbolTable()
        for path in symbols {
            do {
                table.add(try SymbolTable(file: GuestOptions.readFile(path)))
            } catch let error as SymbolError {
                throw UsageError("\(path): \(error)")
            }
        }
        table.add(try reader.builtInSymbols())
        return table
    }

    func predicate(_ source: String, of reader: TraceReader, option: String, scope: GuestPredicate.Scope = .guest)
        throws
        -> GuestPredicate
    {
        do {
            return try GuestPredicate(source, symbols: table(for: reader), scope: scope)
        } catch let error as GuestPredicateError {
            throw UsageError("\(option): \(error)")
        }
    }

    func address(_ text: String, in table: SymbolTable, option: String) throws -> UInt64 {
        guard let address = table.address(text) else {
            throw UsageError("\(option) takes an address such as 0x1000 or a symbol, not '\(text)'")
        }
        return address
    }

    func range(_ text: String, in table: SymbolTable, option: String, standard: Int) throws -> AddressRange {
        guard let range = AddressRange(text, symbols: table, standard: standard) else {
            throw UsageError(
                "\(option) takes ADDR, ADDR:LEN or phys:ADDR:LEN with at most \(AddressRange.largest) bytes, "
                    + "and numbers or symbols, not '\(text)'")
        }
        return range
    }
}
